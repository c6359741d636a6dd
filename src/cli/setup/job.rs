//! The Nomad job that runs the agent, and whose a login is that is there already.

use crate::cli::failure::Failure;

/// The agent's job.
#[derive(Clone, Debug, clap::Args)]
pub(super) struct Job {
    /// The Nomad namespace of the agent's job.
    #[arg(long, value_name = "NAME", default_value = "default")]
    pub nomad_namespace: String,
    /// The agent's job. That of a second gateway needs a -name of its own, too.
    #[arg(long, value_name = "NAME", default_value = "portreeve")]
    pub nomad_job: String,
    /// Take what is there under this -name from the job that has it: for one that has another name or namespace now.
    #[arg(long)]
    replace_job: bool,
}

/// Whom the thing that is there lets in.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Holders {
    pub namespaces: Vec<String>,
    pub jobs: Vec<String>,
}

impl Job {
    /// Before anything is written: with the thing in its place, the other job's agents could not log in any more.
    pub fn may_have(&self, what: &str, held: &Holders) -> anyhow::Result<()> {
        let (namespace, job) = (&self.nomad_namespace, &self.nomad_job);
        let other = |held: &[String], own: &String| held.iter().find(|one| *one != own).cloned();
        let belongs = match (other(&held.jobs, job), other(&held.namespaces, namespace)) {
            _ if self.replace_job => return Ok(()),
            (None, None) => return Ok(()),
            (Some(other), _) => format!("to the job {other:?}, not to {job:?}"),
            (None, Some(other)) => {
                format!("to the job {job:?} in the namespace {other:?}, not in {namespace:?}")
            }
        };
        let failure = Failure::new(format!("{what} belongs {belongs}"));
        Err(failure
            .fix(
                "another gateway's job needs a -name of its own; if it is the same job under another name or in another \
                 namespace, -replace-job gives it what is there, and takes it from the other",
            )
            .into())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_another_job_has_is_not_taken_without_a_word() {
        let job = |namespace: &str, name: &str, replace_job| Job {
            nomad_namespace: namespace.to_owned(),
            nomad_job: name.to_owned(),
            replace_job,
        };
        let held = Holders {
            namespaces: vec!["default".to_owned()],
            jobs: vec!["portreeve".to_owned()],
        };
        let refused = |job: Job, held: &Holders| Some(job.may_have("it", held).err()?.to_string());
        assert_eq!(refused(job("default", "portreeve", false), &held), None);
        assert_eq!(refused(job("default", "internal", true), &held), None);
        assert_eq!(
            refused(job("default", "internal", false), &Holders::default()),
            None
        );
        let other = refused(job("default", "internal", false), &held).unwrap();
        assert_eq!(other, "it belongs to the job \"portreeve\", not to \"internal\"");
        let elsewhere = refused(job("ingress", "portreeve", false), &held).unwrap();
        assert_eq!(
            elsewhere,
            "it belongs to the job \"portreeve\" in the namespace \"default\", not in \"ingress\""
        );
    }
}
