//! Which gateway a bot talks to.

use std::sync::{
    Arc,
    atomic::{AtomicUsize, Ordering},
};

/// The gateways that a client knows; it uses one until that does not answer. Clones share it.
#[derive(Debug, Clone)]
pub(super) struct Gateways {
    urls: Arc<[String]>,
    present: Arc<AtomicUsize>,
}

impl Gateways {
    pub(super) fn new(urls: &[impl AsRef<str>]) -> Self {
        Self {
            urls: urls.iter().map(|url| url.as_ref().trim_end_matches('/').to_owned()).collect(),
            present: Arc::default(),
        }
    }

    /// The one in use.
    pub(super) fn present(&self) -> String {
        self.urls.get(self.present.load(Ordering::Relaxed)).cloned().unwrap_or_default()
    }

    /// Goes on to the next, unless that has been done: a socket and a request may find the same one gone.
    pub(super) fn leave(&self, gateway: &str) {
        let Some(at) = self.urls.iter().position(|url| url == gateway) else { return };
        let next = (at + 1) % self.urls.len();
        let _ = self.present.compare_exchange(at, next, Ordering::Relaxed, Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_gateway_that_is_gone_is_left_once() {
        let gateways = Gateways::new(&["http://a/", "http://b"]);
        assert_eq!(gateways.present(), "http://a");
        gateways.leave("http://a");
        gateways.leave("http://a");
        assert_eq!(gateways.present(), "http://b");
        gateways.leave("http://b");
        assert_eq!(gateways.present(), "http://a");
    }
}
