use std::net::SocketAddr;
use std::sync::Arc;

use imbl::OrdMap;
use serde::{Deserialize, Serialize};

use super::mesh::{Chain, ChainQuery, Intention, IntentionQuery, Interest, MeshLeaf, MeshRoots};
use super::{CertificateMaterial, CertificateQuery, Document, DocumentId, Instance, Problem, ServiceQuery};

/// One change from one source, already in model types. Equal content is never sent twice.
#[derive(Clone, Debug)]
pub enum Observation {
    Documents(DocumentsUpdate),
    Service(ServiceUpdate),
    Certificate(CertificateUpdate),
    Chain(ChainUpdate),
    Intention(IntentionUpdate),
    Mesh(MeshUpdate),
    Accepted(AcceptedText),
    /// Every name in the catalog that the token may see, sorted: what a service that is not there may have meant.
    ServiceNames(Arc<[Arc<str>]>),
    Exposed(ExposedUpdate),
    /// All ports that this node's Envoys share with somebody else, sorted.
    SharedPorts(Arc<[SharedPort]>),
}

/// A listener's port on which another process listens too.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct SharedPort {
    pub gateway: Arc<str>,
    pub listener: Arc<str>,
    /// Where the listener listens.
    pub ours: SocketAddr,
    /// Where the other process does: there, or on one address of "any".
    pub theirs: SocketAddr,
    /// Its id and name, where they can be seen.
    pub holder: Option<(u32, Arc<str>)>,
}

/// What became of one source's documents, taken whole: one Consul transaction is one update.
#[derive(Clone, Debug, Default)]
pub struct DocumentsUpdate {
    /// Which source speaks: a KV prefix or a directory.
    pub source: Arc<str>,
    pub changed: Vec<Document>,
    pub removed: Vec<DocumentId>,
    /// The source has answered once: "no documents" is now known, not assumed.
    pub complete: bool,
    /// None: the source is fine. Some: it is not, and what it said before stands.
    pub problem: Option<Problem>,
}

impl DocumentsUpdate {
    pub fn from_source(source: impl Into<Arc<str>>) -> Self {
        Self {
            source: source.into(),
            ..Self::default()
        }
    }
}

/// What the replicas last accepted of a document whose present text is bad here. None: nobody keeps one.
#[derive(Clone, Debug)]
pub struct AcceptedText {
    pub document: DocumentId,
    pub text: Option<Arc<str>>,
}

/// Which services in a catalog ask to be exposed. What they say comes with their instances.
#[derive(Clone, Debug, Default)]
pub struct ExposedUpdate {
    pub added: Vec<Arc<str>>,
    pub removed: Vec<Arc<str>>,
    /// None: the catalog was read. Some: it was not, and what it said before stands.
    pub problem: Option<Problem>,
}

/// How a service asks: with a tag, or with metadata where its instances are looked into for it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct OptIn {
    /// `portreeve`: tags are `portreeve.enable=true` and so on.
    pub prefix: Arc<str>,
    /// Names, with `*` for any text, of services whose metadata may ask though no tag does.
    pub metadata_of: Vec<Arc<str>>,
}

impl OptIn {
    /// From the catalog's list alone: names with all tags of all instances.
    pub fn may_ask(&self, service: &str, mut tags: impl Iterator<Item = impl AsRef<str>>) -> bool {
        tags.any(|tag| self.enables(tag.as_ref()))
            || self.metadata_of.iter().any(|pattern| covers(pattern, service))
    }

    /// Of tags none of which asks, the one that seems to have been meant to: a word beside `true` and `false`, or settings
    /// without the tag that asks. None: nothing of ours is said, or a plain "no".
    pub fn slip<'a>(&self, tags: impl Iterator<Item = &'a str> + Clone) -> Option<&'a str> {
        let ours = tags.filter_map(|tag| {
            let (head, rest) = tag.split_at_checked(self.prefix.len())?;
            let is_ours = rest.starts_with(['.', '=']) || rest.starts_with("-enable") || rest.is_empty();
            (head.eq_ignore_ascii_case(&self.prefix) && is_ours).then_some((tag, rest))
        });
        let says_no = |(_, rest): (&str, &str)| {
            rest.strip_prefix(".enable=")
                .is_some_and(|value| matches!(value, "0" | "f" | "F" | "false" | "FALSE" | "False"))
        };
        if ours.clone().any(says_no) {
            return None;
        }
        let of_enable = |(_, rest): &(&str, &str)| rest.get(1..).is_some_and(|key| key.starts_with("enable"));
        ours.clone()
            .find(of_enable)
            .or_else(|| ours.clone().next())
            .map(|(tag, _)| tag)
    }

    /// `portreeve`, `portreeve.enable` or `portreeve.enable=true`.
    pub fn enables(&self, tag: &str) -> bool {
        let Some(rest) = tag.strip_prefix(&*self.prefix) else {
            return false;
        };
        match rest.strip_prefix(".enable") {
            Some(value) => value.is_empty() || value.strip_prefix('=').is_some_and(is_true),
            None => rest.is_empty(),
        }
    }
}

/// As Go's `strconv.ParseBool` has it.
pub fn is_true(value: &str) -> bool {
    matches!(value, "1" | "t" | "T" | "true" | "TRUE" | "True")
}

/// `*` stands for any text, as often as it is written.
pub fn covers(pattern: &str, text: &str) -> bool {
    let Some((first, rest)) = pattern.split_once('*') else {
        return pattern == text;
    };
    let Some(text) = text.strip_prefix(first) else {
        return false;
    };
    // The last piece must end the text; those between are found from left to right.
    let (middle, last) = rest.rsplit_once('*').unwrap_or(("", rest));
    let Some(mut text) = text.strip_suffix(last) else {
        return false;
    };
    for piece in middle.split('*') {
        match text.find(piece) {
            Some(at) => text = &text[at + piece.len()..],
            None => return false,
        }
    }
    true
}

#[derive(Clone, Debug)]
pub struct ServiceUpdate {
    pub query: ServiceQuery,
    /// Ok: the instances, sorted. Err: the last known ones stand.
    pub result: Result<Arc<[Instance]>, Problem>,
}

#[derive(Clone, Debug)]
pub struct CertificateUpdate {
    pub query: CertificateQuery,
    /// Err: the last known material stands.
    pub result: Result<Arc<CertificateMaterial>, Problem>,
}

#[derive(Clone, Debug)]
pub struct ChainUpdate {
    pub query: ChainQuery,
    /// Err: the last known chain stands.
    pub result: Result<Arc<Chain>, Problem>,
}

#[derive(Clone, Debug)]
pub struct IntentionUpdate {
    pub query: IntentionQuery,
    /// Err: what was last known stands, and only what is said about it depends on it.
    pub result: Result<Arc<Intention>, Problem>,
}

/// The gateway's place in the mesh. Err: the last known one stands.
#[derive(Clone, Debug)]
pub enum MeshUpdate {
    Roots(Result<Arc<MeshRoots>, Problem>),
    Leaf(Result<Arc<MeshLeaf>, Problem>),
}

/// Each with the number of its wish. What was dropped is forgotten; wanted again, it has another number, and whoever
/// watches it tells anew what it knows, even if it never saw the moment in between.
pub type Needed<Q> = OrdMap<Q, u64>;

/// What must be watched. Computed from the configuration, never stored in it. The maps are persistent: two of them are
/// compared at the price of their difference.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Interests {
    pub services: Needed<ServiceQuery>,
    pub certificates: Needed<CertificateQuery>,
    /// Some service is not registered: the names of those that are would help.
    pub service_names: bool,
    /// Chains, intentions, the gateway's identity.
    pub mesh: Needed<Interest>,
}

impl Interests {
    pub fn contains(&self, interest: &Interest) -> bool {
        match interest {
            Interest::Service(query) => self.services.contains_key(query),
            other => self.mesh.contains_key(other),
        }
    }

    pub fn insert(&mut self, interest: &Interest, wish: u64) {
        match interest {
            Interest::Service(query) => _ = self.services.insert(query.clone(), wish),
            other => _ = self.mesh.insert(other.clone(), wish),
        }
    }

    /// Whether it was there.
    pub fn remove(&mut self, interest: &Interest) -> bool {
        match interest {
            Interest::Service(query) => self.services.remove(query).is_some(),
            other => self.mesh.remove(other).is_some(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn patterns() {
        for (pattern, text, expected) in [
            ("*", "anything", true),
            ("web", "web", true),
            ("web", "web2", false),
            ("web-*", "web-1", true),
            ("web-*", "api-1", false),
            ("*-v*-x", "a-v2-x", true),
            ("*-v*-x", "a-v2-y", false),
            ("a*b*c", "abc", true),
            ("a*b*c", "acb", false),
        ] {
            assert_eq!(covers(pattern, text), expected, "{pattern} {text}");
        }
    }

    #[test]
    fn who_asks() {
        let opt_in = OptIn {
            prefix: "portreeve".into(),
            metadata_of: vec!["db-*".into()],
        };
        for tag in [
            "portreeve",
            "portreeve.enable",
            "portreeve.enable=true",
            "portreeve.enable=1",
        ] {
            assert!(opt_in.may_ask("web", [tag].iter()), "{tag}");
        }
        for tag in [
            "portreeve.enable=false",
            "portreeves",
            "portreeve.host=a",
            "other",
        ] {
            assert!(!opt_in.may_ask("web", [tag].iter()), "{tag}");
        }
        assert!(opt_in.may_ask("db-1", [""; 0].iter()));
    }

    #[test]
    fn a_tag_that_nearly_asks_is_noticed_and_a_no_is_not() {
        let opt_in = OptIn {
            prefix: "portreeve".into(),
            metadata_of: Vec::new(),
        };
        let slip = |tags: &[&'static str]| opt_in.slip(tags.iter().copied());
        for tag in [
            "portreeve.enable=yes",
            "portreeve.enabled=true",
            "portreeve.Enable=true",
            "portreeve-enable=true",
            "Portreeve.enable=true",
            "PORTREEVE",
            "portreeve=true",
            "portreeve.host=a",
        ] {
            assert_eq!(slip(&["v2", tag]), Some(tag));
        }
        assert_eq!(
            slip(&["portreeve.host=a", "portreeve.enable=on"]),
            Some("portreeve.enable=on")
        );
        for tags in [
            &["portreeve.enable=false", "portreeve.host=a"][..],
            &["portreeves", "port", "portréeve.enable=yes", "portreeve-blue"],
            &[],
        ] {
            assert_eq!(slip(tags), None, "{tags:?}");
        }
    }
}
