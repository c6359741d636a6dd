use crate::diagnostics::Code;
use crate::model::ProblemKind;

/// Why a certificate, or the authorities of clients, could not be had: each fault that an alert may want to tell apart has a code
/// of its own.
pub(super) fn code_of(kind: ProblemKind) -> Code {
    match kind {
        ProblemKind::Malformed => Code::CertificateMalformed,
        ProblemKind::KeyMismatch => Code::CertificateKeyMismatch,
        ProblemKind::Expired => Code::CertificateExpired,
        ProblemKind::WrongMount => Code::VaultWrongMount,
        ProblemKind::WrongKvVersion => Code::VaultWrongKvVersion,
        ProblemKind::TokenNotAccepted => Code::TokenNotAccepted,
        ProblemKind::MissingPermission => Code::MissingPermission,
        ProblemKind::NoToken => Code::NoToken,
        ProblemKind::Blocked => Code::RequestBlocked,
        ProblemKind::Unavailable
        | ProblemKind::Forbidden
        | ProblemKind::NotFound
        | ProblemKind::Deleted
        | ProblemKind::Invalid
        | ProblemKind::Refused
        | ProblemKind::Limit => Code::CertificateProblem,
    }
}
