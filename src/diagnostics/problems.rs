use super::{Code, Diagnostic, Severity};

/// What is told of one document at most.
const TOLD: usize = 100;

/// The problems of one document: the first of them, and how many more there are. A text that is no document of ours can have one on
/// each line, which nobody reads and every agent would keep.
#[derive(Debug, Default)]
pub struct Problems {
    /// One more than are told: where there is just one more, it is told as well.
    first: Vec<Diagnostic>,
    more: usize,
    /// There is an error among those that are not told.
    more_errors: bool,
}

impl Problems {
    pub fn push(&mut self, problem: Diagnostic) {
        if self.first.len() > TOLD {
            self.more += 1;
            self.more_errors |= problem.severity == Severity::Error;
        } else {
            self.first.push(problem);
        }
    }

    pub fn is_empty(&self) -> bool {
        self.first.is_empty()
    }

    pub fn told(self) -> Vec<Diagnostic> {
        let mut told = self.first;
        if self.more > 0
            && let Some(first_left_out) = told.pop()
        {
            let message = format!("{} more problems in this document", self.more + 1);
            let mut summary = Diagnostic::error(Code::TooLarge, message)
                .because(format!("the first {TOLD} are told"))
                .fix("mend these first; if the text is no document, keep it elsewhere");
            if !self.more_errors {
                summary.severity = first_left_out.severity;
            }
            summary.origin = first_left_out.origin;
            told.push(summary);
        }
        told
    }
}

impl Extend<Diagnostic> for Problems {
    fn extend<I: IntoIterator<Item = Diagnostic>>(&mut self, problems: I) {
        for problem in problems {
            self.push(problem);
        }
    }
}

/// Of problems that are all known.
pub fn first_problems(problems: Vec<Diagnostic>) -> Vec<Diagnostic> {
    let mut first = Problems::default();
    first.extend(problems);
    first.told()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_hundred_are_told_and_the_others_counted() {
        let problem = |number: usize| Diagnostic::error(Code::UnknownKey, number.to_string());
        for (count, told, last) in [
            (0, 0, None),
            (100, 100, Some("99")),
            (101, 101, Some("100")),
            (102, 101, Some("2 more problems in this document")),
            (5000, 101, Some("4900 more problems in this document")),
        ] {
            let problems = first_problems((0..count).map(problem).collect());
            assert_eq!(problems.len(), told, "{count}");
            assert_eq!(problems.last().map(|last| last.message.as_str()), last);
            // What was bounded already stays as it is.
            assert_eq!(first_problems(problems.clone()), problems);
        }
    }
}
