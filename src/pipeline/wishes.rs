use std::collections::BTreeSet;
use std::sync::{Arc, Mutex, PoisonError};

use tokio::sync::Notify;

use crate::model::CertificateQuery;

/// Certificates whose key an Envoy asked for and nobody holds any more. A set, as many Envoys ask for the same few: it is
/// bounded by what the documents declare, and no wish is lost.
#[derive(Clone, Debug, Default)]
pub struct KeyWishes(Arc<Inner>);

#[derive(Debug, Default)]
struct Inner {
    queries: Mutex<BTreeSet<CertificateQuery>>,
    added: Notify,
}

impl KeyWishes {
    pub fn add(&self, query: CertificateQuery) {
        let mut queries = self.0.queries.lock().unwrap_or_else(PoisonError::into_inner);
        queries.insert(query);
        drop(queries);
        self.0.added.notify_one();
    }

    fn take_now(&self) -> BTreeSet<CertificateQuery> {
        std::mem::take(&mut self.0.queries.lock().unwrap_or_else(PoisonError::into_inner))
    }

    /// All of them, once there are any. Losing the race against another branch of a select loses none.
    pub async fn take(&self) -> BTreeSet<CertificateQuery> {
        loop {
            let taken = self.take_now();
            if !taken.is_empty() {
                return taken;
            }
            self.0.added.notified().await;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn query(number: usize) -> CertificateQuery {
        CertificateQuery::File {
            certificate: format!("{number}.crt").into(),
            private_key: format!("{number}.key").into(),
        }
    }

    #[tokio::test]
    async fn no_wish_is_lost_however_many_come_at_once() {
        let wishes = KeyWishes::default();
        for number in (0..5000).chain(0..5000) {
            wishes.add(query(number));
        }
        assert_eq!(wishes.take().await.len(), 5000);
        let waiting = tokio::spawn({
            let wishes = wishes.clone();
            async move { wishes.take().await }
        });
        tokio::task::yield_now().await;
        wishes.add(query(7));
        assert_eq!(waiting.await.unwrap(), BTreeSet::from([query(7)]));
    }
}
