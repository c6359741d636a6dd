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

    /// From 1 on.
    pub fn number(&self, name: &str) -> Result<Option<usize>, ApiError> {
        let Some(text) = self.get(name) else {
            return Ok(None);
        };
        match text.parse() {
            Ok(number @ 1..) => Ok(Some(number)),
            _ => Err(
                ApiError::bad_request(format!("{name}={text:?} is not a whole number from 1 on"))
                    .fix("correct it, or leave it out: then there is no limit"),
            ),
        }
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
        for bad in [
            "limit=0",
            "limit=-1",
            "limit=",
            "limit=all",
            "limit=99999999999999999999",
        ] {
            let parameters = Parameters::parse(Some(bad), &["limit"]).unwrap();
            let error = parameters.number("limit").unwrap_err();
            assert!(
                error.body.message.contains("is not a whole number"),
                "{bad}: {error:?}"
            );
        }
        let parameters = Parameters::parse(Some("limit=7"), &["limit", "other"]).unwrap();
        assert_eq!(parameters.number("limit").unwrap(), Some(7));
        assert_eq!(parameters.number("other").unwrap(), None);
        let error = Parameters::parse(Some("gatway=x"), &["gateway"]).unwrap_err();
        assert_eq!(error.body.fix.as_deref(), Some("did you mean \"gateway\"?"));
    }
}
