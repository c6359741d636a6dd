//! Whose certificates the clients of a listener may show.
//!
//! The authorities go by a name beside those of certificates, `client_ca/<listener>`, and are fetched, published and
//! awaited as those are.

use super::certificate::code_of;
use crate::config::{ClientCa, Gateway, Listener, NotAllowed, client_ca_name, listener_of_client_ca};
use crate::diagnostics::{Code, Diagnostic};
use crate::model::{CertificateMaterial, CertificateQuery, DocumentId};
use crate::snapshot::{Known, Snapshot};

/// What is fetched and served under one name in a gateway: a certificate's, or that of a listener's authorities.
pub struct Named<'a> {
    /// What the documents say now, and which of them.
    pub declared: Option<(&'a CertificateQuery, &'a DocumentId)>,
    /// It is declared, and may not be used.
    pub refused: Option<&'a NotAllowed>,
    /// What stands until that has brought something.
    pub former: Option<&'a CertificateQuery>,
    /// What Envoy gets.
    pub serving: Option<&'a Known<CertificateMaterial>>,
}

pub fn named<'a>(snapshot: &'a Snapshot, gateway: &'a Gateway, name: &str) -> Named<'a> {
    match listener_of_client_ca(name) {
        Some(listener) => {
            let declared = client_ca_of(gateway, listener).map(|client_ca| &client_ca.query);
            let former = snapshot.former_authorities(&gateway.name, listener);
            Named {
                declared: declared.map(|query| (query, &gateway.origin.document)),
                refused: None,
                former,
                serving: former
                    .or(declared)
                    .filter(|_| declared.is_some())
                    .and_then(|query| snapshot.certificate(query)),
            }
        }
        None => Named {
            declared: snapshot
                .config
                .certificate(name)
                .and_then(|declared| Some((declared.allowed()?, &declared.origin.document))),
            refused: snapshot
                .config
                .certificate(name)
                .and_then(|declared| declared.query.as_ref().err()),
            former: snapshot.former(name),
            serving: snapshot.serving(name),
        },
    }
}

pub fn client_ca_of<'a>(gateway: &'a Gateway, listener: &str) -> Option<&'a ClientCa> {
    let listener = gateway.listeners.iter().find(|known| *known.name == *listener)?;
    listener.tls.as_ref()?.client_ca.as_ref()
}

/// Whether it is known whose certificates clients may show, and what is wrong with that. Unknown, nobody is let in: the
/// listener stays closed rather than open to all.
pub(super) fn authorities(
    snapshot: &Snapshot,
    gateway: &Gateway,
    listener: &Listener,
    client_ca: &ClientCa,
) -> (bool, Option<Diagnostic>) {
    let Named { former, serving, .. } = named(snapshot, gateway, &client_ca_name(&listener.name));
    let at_hand = serving.is_some_and(|serving| serving.value.is_some());
    let problem = snapshot
        .certificate(&client_ca.query)
        .and_then(|known| known.problem.as_ref());
    let withheld = |why: String| {
        format!(
            "the listener {:?} is not opened, as the authorities of its clients are not known: {why}",
            listener.name
        )
    };
    let unanswered = || format!("{} has not answered yet", client_ca.query);
    let wait = "wait a moment; if it stays, `portreeve status` says how its source is";
    let diagnostic = match (at_hand, problem) {
        (true, None) => former.map(|former| {
            Diagnostic::warning(
                Code::NotYetKnown,
                format!("client_ca of listener {:?}: {}", listener.name, unanswered()),
            )
            .because(format!(
                "until it has, clients are checked as before the edit: {former}"
            ))
            .fix(wait)
        }),
        (true, Some(problem)) => Some(
            Diagnostic::warning(
                code_of(problem.kind),
                format!("client_ca of listener {:?}: {problem}", listener.name),
            )
            .because("the authorities and revocation lists that could be used when they were read last are in force")
            .fix(problem.advice()),
        ),
        (false, Some(problem)) => Some(
            Diagnostic::error(Code::ListenerWithheld, withheld(problem.to_string()))
                .because("without these authorities the port would let in every client, or none")
                .fix(problem.advice()),
        ),
        (false, None) => Some(
            Diagnostic::warning(Code::ListenerWithheld, withheld(unanswered()))
                .because("without these authorities the port would let in every client, or none")
                .fix(wait),
        ),
    };
    let placed = |diagnostic: Diagnostic| {
        diagnostic
            .at(client_ca.origin.clone())
            .about("gateway", &gateway.name)
    };
    (at_hand, diagnostic.map(placed))
}
