//! Certificates.
pub mod pem;
pub mod store;
