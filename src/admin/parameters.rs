//! Query parameters: repeated ones are kept, unknown ones refused.

use super::answer::ApiError;
use crate::diagnostics::suggestion;

#[derive(Debug, Default)]
pub struct Parameters(Vec<(String, String)>);

impl Parameters {
    pub fn parse(query: Option<&str>, known: &[&str]) -> Result<Self, ApiError> {
        let pairs: Vec<(String, String)> = url::form_urlencoded::parse(query.unwrap_or_default().as_bytes())
            .into_owned()
            .collect();
        for (name, _) in &pairs {
            if !known.contains(&name.as_str()) {
                let error = ApiError::bad_request(format!("unknown parameter {name:?}"));
                return Err(match (suggestion(name, known.iter().copied()), known) {
                    (Some(near), _) => error.fix(format!("did you mean {near:?}?")),
                    (None, []) => error.fix("this path takes none"),
                    (None, known) => error.fix(format!("known here: {}", known.join(", "))),
                });
            }
        }
        Ok(Self(pairs))
    }

    pub fn get(&self, name: &str) -> Option<&str> {
        self.0
            .iter()
            .find(|(key, _)| key == name)
            .map(|(_, value)| value.as_str())
    }

    pub fn all<'a>(&'a self, name: &'a str) -> impl Iterator<Item = &'a str> + 'a {
        self.0
            .iter()
            .filter(move |(key, _)| key == name)
            .map(|(_, value)| value.as_str())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keeps_repeated_and_refuses_unknown() {
        let parameters = Parameters::parse(Some("a=1&a=%20x&b="), &["a", "b"]).unwrap();
        assert_eq!(parameters.all("a").collect::<Vec<_>>(), ["1", " x"]);
        assert_eq!(parameters.get("b"), Some(""));
        let error = Parameters::parse(Some("gatway=x"), &["gateway"]).unwrap_err();
        assert_eq!(error.body.fix.as_deref(), Some("did you mean \"gateway\"?"));
    }
}
