//! What many have in common, kept once.

use std::collections::BTreeMap;
use std::ops::Deref;
use std::sync::Arc;

use serde::{Deserialize, Deserializer, Serialize, Serializer};

/// A list or map that equals may share. Empty, it takes no memory: of a hundred thousand instances most have none.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Shared<T>(Option<Arc<T>>);

/// A type whose empty value is there without being made.
pub trait Empty: Sized + 'static {
    fn empty() -> &'static Self;
}

impl Empty for Vec<Arc<str>> {
    fn empty() -> &'static Self {
        static EMPTY: Vec<Arc<str>> = Vec::new();
        &EMPTY
    }
}

impl Empty for BTreeMap<Arc<str>, Arc<str>> {
    fn empty() -> &'static Self {
        static EMPTY: BTreeMap<Arc<str>, Arc<str>> = BTreeMap::new();
        &EMPTY
    }
}

impl Empty for BTreeMap<Arc<str>, u16> {
    fn empty() -> &'static Self {
        static EMPTY: BTreeMap<Arc<str>, u16> = BTreeMap::new();
        &EMPTY
    }
}

impl<T: Empty + Clone> Shared<T> {
    /// Its own from here on, if it was shared.
    pub fn to_mut(&mut self) -> &mut T {
        Arc::make_mut(self.0.get_or_insert_with(|| Arc::new(T::empty().clone())))
    }
}

impl<T: PartialEq> Shared<T> {
    /// Takes the other's memory where both are equal.
    pub fn share_with(&mut self, other: &Self) {
        if self == other {
            self.0.clone_from(&other.0);
        }
    }
}

impl<T: Empty + PartialEq> From<T> for Shared<T> {
    fn from(value: T) -> Self {
        Self((value != *T::empty()).then(|| Arc::new(value)))
    }
}

impl<T> Default for Shared<T> {
    fn default() -> Self {
        Self(None)
    }
}

impl<T: Empty> Deref for Shared<T> {
    type Target = T;

    fn deref(&self) -> &T {
        match &self.0 {
            Some(value) => value,
            None => T::empty(),
        }
    }
}

/// As what it holds.
impl<T: Empty + Serialize> Serialize for Shared<T> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        (**self).serialize(serializer)
    }
}

impl<'de, T: Empty + PartialEq + Deserialize<'de>> Deserialize<'de> for Shared<T> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        T::deserialize(deserializer).map(Self::from)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    type Tags = Shared<Vec<Arc<str>>>;

    #[test]
    fn equals_lie_in_one_place_and_part_when_one_changes() {
        let tags = |tag: &str| Tags::from(vec![Arc::from(tag)]);
        let (mut one, mut other, mut unlike) = (tags("a"), tags("a"), tags("b"));
        other.share_with(&one);
        unlike.share_with(&one);
        assert!(std::ptr::eq(&*one, &*other) && !std::ptr::eq(&*one, &*unlike));
        one.to_mut().push("c".into());
        assert_eq!((one.len(), other.len()), (2, 1));
    }

    #[test]
    fn what_is_empty_is_nothing() {
        let mut none = Tags::from(Vec::new());
        assert!(none.is_empty() && none == Tags::default());
        none.to_mut().push("a".into());
        assert_eq!(serde_json::to_string(&none).unwrap(), r#"["a"]"#);
        assert_eq!(serde_json::from_str::<Tags>(r#"["a"]"#).unwrap(), none);
        assert_eq!(serde_json::from_str::<Tags>("[]").unwrap(), Tags::default());
    }
}
