//! Selects the gateway that a bot uses.

use std::sync::{
    Arc,
    atomic::{AtomicUsize, Ordering},
};

/// The gateways that a client knows. It uses one of them until it stops answering. Clones share the choice.
#[derive(Debug, Clone)]
pub(super) struct Gateways {
    urls: Arc<[String]>,
    current: Arc<AtomicUsize>,
}

impl Gateways {
    pub(super) fn new(urls: &[impl AsRef<str>]) -> Self {
        Self {
            urls: urls.iter().map(|url| url.as_ref().trim_end_matches('/').to_owned()).collect(),
            current: Arc::default(),
        }
    }

    /// The base URL of the gateway in use.
    pub(super) fn current(&self) -> String {
        self.urls.get(self.current.load(Ordering::Relaxed)).cloned().unwrap_or_default()
    }

    /// Switches from this gateway to the next one. Does nothing if another gateway is in use: a socket and a request
    /// may both report the same failed gateway.
    pub(super) fn switch_from(&self, gateway: &str) {
        let Some(at) = self.urls.iter().position(|url| url == gateway) else { return };
        let next = (at + 1) % self.urls.len();
        let _ = self.current.compare_exchange(at, next, Ordering::Relaxed, Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn two_reports_of_the_same_failed_gateway_switch_once() {
        let gateways = Gateways::new(&["http://a/", "http://b"]);
        assert_eq!(gateways.current(), "http://a");
        gateways.switch_from("http://a");
        gateways.switch_from("http://a");
        assert_eq!(gateways.current(), "http://b");
        gateways.switch_from("http://b");
        assert_eq!(gateways.current(), "http://a");
    }
}
