use std::sync::Arc;

use crate::model::Problem;

/// The last good answer of one watch, and what is wrong with it since.
#[derive(Debug)]
pub struct Known<T: ?Sized> {
    pub value: Option<Arc<T>>,
    pub problem: Option<Problem>,
    /// From disk, not from the source: shown as such until the source answers.
    pub stale: bool,
}

impl<T: ?Sized> Clone for Known<T> {
    fn clone(&self) -> Self {
        Self {
            value: self.value.clone(),
            problem: self.problem.clone(),
            stale: self.stale,
        }
    }
}

impl<T: ?Sized> Default for Known<T> {
    fn default() -> Self {
        Self {
            value: None,
            problem: None,
            stale: false,
        }
    }
}

/// What one answer changed.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Difference {
    /// The problem's words are part of what the units say.
    pub(super) in_content: bool,
    pub(super) in_status: bool,
}

impl<T: ?Sized + PartialEq> Known<T> {
    /// Takes up an answer: a problem stands beside the last good value.
    pub(super) fn after(before: Option<&Self>, result: Result<Arc<T>, Problem>) -> (Self, Difference) {
        let after = match result {
            Ok(value) => Self {
                value: Some(value),
                problem: None,
                stale: false,
            },
            Err(problem) => {
                let (value, stale) = before.map_or((None, false), |known| (known.value.clone(), known.stale));
                Self {
                    value,
                    problem: Some(problem),
                    stale,
                }
            }
        };
        let same = before.is_some_and(|known| known.value == after.value && known.problem == after.problem);
        let difference = Difference {
            in_content: !same,
            in_status: before
                .is_none_or(|known| known.problem != after.problem || known.stale != after.stale),
        };
        (after, difference)
    }
}

impl<T: ?Sized> Known<T> {
    /// From disk.
    pub(super) fn restored(value: Arc<T>) -> Self {
        Self {
            value: Some(value),
            problem: None,
            stale: true,
        }
    }

    /// The watch has spoken: a value, or a reason why there is none.
    pub fn answered(&self) -> bool {
        self.value.is_some() || self.problem.is_some()
    }
}
