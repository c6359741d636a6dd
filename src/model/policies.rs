use std::any::Any;
use std::fmt;
use std::sync::Arc;

/// One policy's value, of a type only its feature knows.
pub trait PolicyValue: fmt::Debug + Send + Sync + 'static {
    fn as_any(&self) -> &dyn Any;
    fn equals(&self, other: &dyn PolicyValue) -> bool;
    /// For `explain` and the API.
    fn to_json(&self) -> serde_json::Value;
}

impl<T> PolicyValue for T
where
    T: fmt::Debug + PartialEq + serde::Serialize + Send + Sync + 'static,
{
    fn as_any(&self) -> &dyn Any {
        self
    }

    fn equals(&self, other: &dyn PolicyValue) -> bool {
        other.as_any().downcast_ref::<T>() == Some(self)
    }

    fn to_json(&self) -> serde_json::Value {
        serde_json::to_value(self).unwrap_or(serde_json::Value::Null)
    }
}

/// What one scope says about one policy.
#[derive(Clone, Debug)]
pub enum PolicySetting {
    Set(Arc<dyn PolicyValue>),
    /// `disabled = true`: an inherited one is switched off.
    Disabled,
}

/// The policies that stand on one scope, sorted by feature name. They are few: a list costs less than a map, and nothing
/// when it is empty. The routes of a scope share it.
#[derive(Clone, Debug, Default)]
pub struct Policies(Option<Arc<Vec<(&'static str, PolicySetting)>>>);

impl Policies {
    pub fn set(&mut self, feature: &'static str, setting: PolicySetting) {
        let all = Arc::make_mut(self.0.get_or_insert_default());
        match all.binary_search_by_key(&feature, |(name, _)| name) {
            Ok(at) => all[at].1 = setting,
            Err(at) => all.insert(at, (feature, setting)),
        }
    }

    pub fn get(&self, feature: &str) -> Option<&dyn PolicyValue> {
        match self.all().iter().find(|(name, _)| *name == feature)? {
            (_, PolicySetting::Set(value)) => Some(&**value),
            (_, PolicySetting::Disabled) => None,
        }
    }

    /// Something is said about it, be it that it is switched off.
    pub fn mentions(&self, feature: &str) -> bool {
        self.all().iter().any(|(name, _)| *name == feature)
    }

    pub fn iter(&self) -> impl Iterator<Item = (&'static str, &dyn PolicyValue)> {
        self.all().iter().filter_map(|(name, setting)| match setting {
            PolicySetting::Set(value) => Some((*name, &**value)),
            PolicySetting::Disabled => None,
        })
    }

    /// The nearer scope wins, policy by policy.
    pub fn overlaid_by(&self, nearer: &Self) -> Self {
        if self.is_empty() {
            return nearer.clone();
        }
        let mut merged = self.clone();
        for (name, setting) in nearer.all() {
            merged.set(name, setting.clone());
        }
        merged
    }

    pub fn is_empty(&self) -> bool {
        self.all().is_empty()
    }

    /// Both are one and the same in memory. False says nothing: equal ones may have been made apart.
    pub fn is_shared_with(&self, other: &Self) -> bool {
        match (&self.0, &other.0) {
            (Some(one), Some(other)) => Arc::ptr_eq(one, other),
            (None, None) => true,
            _ => false,
        }
    }

    fn all(&self) -> &[(&'static str, PolicySetting)] {
        self.0.as_deref().map_or(&[], Vec::as_slice)
    }
}

impl serde::Serialize for Policies {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_map(self.all().iter().map(|(name, setting)| match setting {
            PolicySetting::Set(value) => (*name, value.to_json()),
            PolicySetting::Disabled => (*name, "disabled".into()),
        }))
    }
}

impl PartialEq for Policies {
    fn eq(&self, other: &Self) -> bool {
        self.all().len() == other.all().len()
            && self
                .all()
                .iter()
                .zip(other.all())
                .all(|((name, setting), (other_name, other))| {
                    name == other_name
                        && match (setting, other) {
                            (PolicySetting::Set(a), PolicySetting::Set(b)) => {
                                Arc::ptr_eq(a, b) || a.equals(&**b)
                            }
                            (PolicySetting::Disabled, PolicySetting::Disabled) => true,
                            _ => false,
                        }
                })
    }
}
