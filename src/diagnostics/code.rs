use serde::{Deserialize, Serialize};

macro_rules! codes {
    ($($(#[doc = $doc:literal])+ $variant:ident => $name:literal,)+) => {
        /// What kind of problem. The names are stable: scripts and alerts may rely on them.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
        pub enum Code {
            $($(#[doc = $doc])+ #[serde(rename = $name)] $variant,)+
        }

        impl Code {
            pub const ALL: &'static [Self] = &[$(Self::$variant),+];

            pub fn as_str(self) -> &'static str {
                match self { $(Self::$variant => $name,)+ }
            }

            /// For the generated reference.
            pub fn explanation(self) -> &'static str {
                match self { $(Self::$variant => concat!($($doc),+).trim_ascii(),)+ }
            }
        }
    };
}

codes! {
    /// The text is not valid HCL or JSON. The document's last good version stays in service.
    SyntaxError => "syntax-error",
    /// An attribute or block that the schema does not have at this place.
    UnknownKey => "unknown-key",
    /// A required attribute, label or block is not there.
    MissingKey => "missing-key",
    /// A value of the wrong type, out of range, or malformed.
    InvalidValue => "invalid-value",
    /// Blocks or attributes that exclude each other, or stand more often than allowed.
    Conflict => "conflict",
    /// A document, value or nesting over a stated bound.
    TooLarge => "too-large",
    /// Two objects of one kind with one name: the older document holds it.
    DuplicateName => "duplicate-name",
    /// A name that no document declares.
    UnknownReference => "unknown-reference",
    /// A service of Consul or Nomad that has no registered instance.
    UnknownService => "unknown-service",
    /// Every instance of a service is critical or in maintenance.
    NoHealthyInstance => "no-healthy-instance",
    /// An instance that cannot be used: no port, or a host name where an address is needed.
    UnusableInstance => "unusable-instance",
    /// Every backend of a rule has weight 0: the rule answers 503. Of a tcp route: its ports are closed.
    NoBackend => "no-backend",
    /// A watch has not answered yet.
    NotYetKnown => "not-yet-known",
    /// A route is attached to nothing: no gateway or listener takes it.
    NotAttached => "not-attached",
    /// Two rules match exactly the same requests, or two tcp routes name one listener: the older document's holds.
    ShadowedRule => "shadowed-rule",
    /// What is asked for and, as it stands, never happens.
    NoEffect => "no-effect",
    /// A redirect to itself, or to a port where the gateway does not listen.
    DoubtfulRedirect => "doubtful-redirect",
    /// Two gateways or listeners want the same port, or another process listens on it too.
    PortClash => "port-clash",
    /// A listener that is not opened: it has no usable certificate, the authorities of its clients are not known, or its tcp route has no usable backend.
    ListenerWithheld => "listener-withheld",
    /// A certificate that could not be fetched, read or used, for another reason than the ones below.
    CertificateProblem => "certificate-problem",
    /// What a certificate, its key or the authorities of clients should be read from holds none, or in a form that cannot be
    /// used: no PEM, damaged, encrypted, too large.
    CertificateMalformed => "certificate-malformed",
    /// A private key that belongs to another certificate than the one beside it.
    CertificateKeyMismatch => "certificate-key-mismatch",
    /// The certificate, authority or revocation list at its source had expired when it was read: it is not taken up.
    CertificateExpired => "certificate-expired",
    /// Nothing is mounted in Vault where a document says, or another secrets engine.
    VaultWrongMount => "vault-wrong-mount",
    /// The mount is of another version of KV than the document says.
    VaultWrongKvVersion => "vault-wrong-kv-version",
    /// A certificate, an authority of clients or a revocation list in the last fifth of its life (with a list: the last tenth), or
    /// past its end.
    CertificateExpiry => "certificate-expiry",
    /// A host with routes on an https listener, none of whose certificates names it: its clients are refused.
    HostNotCovered => "host-not-covered",
    /// A document from KV reaches for something that the agent's settings do not allow it.
    NotAllowed => "not-allowed",
    /// A security policy that cannot be built: its routes answer 503.
    SecurityPolicyInvalid => "security-policy-invalid",
    /// Envoy refused a resource: what it last accepted stays in service.
    EnvoyRejected => "envoy-rejected",
    /// The mesh cannot be entered: no certificate for the gateway, or no discovery chain for a service.
    MeshProblem => "mesh-problem",
    /// A service of the mesh that speaks plain TCP, behind a route of HTTP.
    ProtocolMismatch => "protocol-mismatch",
    /// A service of the mesh that does not let the gateway in.
    IntentionDenied => "intention-denied",
    /// What a discovery chain asks for cannot be done behind a rule: those requests answer 503. Behind a tcp route: its ports
    /// are closed.
    NotExpressible => "not-expressible",
    /// Consul, Vault or Nomad does not know the agent's token: it was deleted or revoked, or has ended. What was last known stays.
    TokenNotAccepted => "token-not-accepted",
    /// Consul or Vault knows the agent's token, and it lacks the right that the message names. What was last known stays.
    MissingPermission => "missing-permission",
    /// The agent has no token for Consul or Nomad, and their ACLs do not let everybody do what was asked. What was last known stays.
    NoToken => "no-token",
    /// The settings of the Consul agent that was asked refuse the request, whatever the token: `http_config.block_endpoints` or
    /// `http_config.allow_write_http_from`. What was last known stays.
    RequestBlocked => "request-blocked",
    /// Consul, Vault, Nomad or the file system did not answer as needed, for another reason than the four above: what was last known
    /// stays.
    SourceProblem => "source-problem",
}
