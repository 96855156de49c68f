//! Finds the public address of a node, by which clients reach it.

use std::{net::IpAddr, str::FromStr};

use k8s_openapi::api::core::v1::Node;

/// A place where a node's public address may be found.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Source {
    /// The node's address of type `ExternalIP`.
    External,
    /// The node's address of type `InternalIP`, for clients that can reach it.
    Internal,
    /// The annotation of this name.
    Annotation(String),
    /// The label of this name.
    Label(String),
}

impl FromStr for Source {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match (text, text.split_once(':')) {
            ("external-ip", _) => Ok(Self::External),
            ("internal-ip", _) => Ok(Self::Internal),
            (_, Some(("annotation", name))) if !name.is_empty() => Ok(Self::Annotation(name.into())),
            (_, Some(("label", name))) if !name.is_empty() => Ok(Self::Label(name.into())),
            _ => Err("expected external-ip, internal-ip, annotation:NAME or label:NAME".into()),
        }
    }
}

impl Source {
    /// The node's address from this source, if it has one there.
    fn of(&self, node: &Node) -> Option<IpAddr> {
        let typed = |kind: &str| {
            let addresses = node.status.as_ref()?.addresses.as_ref()?;
            addresses.iter().filter(|address| address.type_ == kind).find_map(|address| address.address.parse().ok())
        };
        match self {
            Self::External => typed("ExternalIP"),
            Self::Internal => typed("InternalIP"),
            Self::Annotation(name) => node.metadata.annotations.as_ref()?.get(name)?.parse().ok(),
            // A label must not contain colons, so an IPv6 address is written with hyphens.
            Self::Label(name) => {
                let text = node.metadata.labels.as_ref()?.get(name)?;
                text.parse().or_else(|_: std::net::AddrParseError| text.replace('-', ":").parse()).ok()
            }
        }
    }
}

/// The public address of a node, from the first source that has one.
pub(super) fn public_ip(node: &Node, sources: &[Source]) -> Option<IpAddr> {
    sources.iter().find_map(|source| source.of(node))
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn node(addresses: &[(&str, &str)]) -> Node {
        let addresses: Vec<_> =
            addresses.iter().map(|(kind, address)| json!({"type": kind, "address": address})).collect();
        let metadata = json!({"name": "n", "annotations": {"public": "2001:db8::7"}, "labels": {"v4": "203.0.113.9",
            "v6": "2001-db8--9", "none": "node-1"}});
        serde_json::from_value(json!({"metadata": metadata, "status": {"addresses": addresses}})).unwrap()
    }

    fn found(node: &Node, order: &str) -> Option<String> {
        let sources: Vec<Source> = order.split(',').map(|source| source.parse().unwrap()).collect();
        public_ip(node, &sources).map(|ip| ip.to_string())
    }

    #[test]
    fn the_first_source_that_has_an_address_is_used() {
        let both = node(&[("InternalIP", "10.0.0.11"), ("ExternalIP", "203.0.113.11"), ("Hostname", "n")]);
        let internal = node(&[("InternalIP", "10.0.0.12"), ("Hostname", "n")]);
        let ipv6 = node(&[("ExternalIP", "2001:db8::11")]);
        for (node, order, address) in [
            (&both, "external-ip", Some("203.0.113.11")),
            (&both, "internal-ip,external-ip", Some("10.0.0.11")),
            (&internal, "external-ip", None),
            (&internal, "external-ip,internal-ip", Some("10.0.0.12")),
            (&internal, "external-ip,annotation:public,internal-ip", Some("2001:db8::7")),
            (&internal, "label:v4,internal-ip", Some("203.0.113.9")),
            (&internal, "label:v6", Some("2001:db8::9")),
            (&internal, "label:none,annotation:none,internal-ip", Some("10.0.0.12")),
            (&ipv6, "external-ip", Some("2001:db8::11")),
        ] {
            assert_eq!(found(node, order).as_deref(), address, "{order}");
        }
    }

    #[test]
    fn an_unknown_address_source_is_refused() {
        for bad in ["", "external", "label:", "annotation", "hostname"] {
            assert!(bad.parse::<Source>().is_err(), "{bad:?}");
        }
    }
}
