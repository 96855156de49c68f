//! The proxies in front of the gateway, and how they name the client's address: with the PROXY protocol (version 1 or
//! 2), or with the header `Forwarded` (RFC 7239). The gateway trusts only configured proxies. It does not read
//! `X-Forwarded-For`, which has no specification, and which clients can often set themselves.

use std::{
    io,
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
};

use hyper::{HeaderMap, header::FORWARDED};
use ipnet::IpNet;
use proxy_header::{ParseConfig, io::ProxiedStream};
use tokio::{io::AsyncRead, time::timeout};

use crate::{config::ProxyHeader, limits::DEADLINE};

/// The configured proxies.
#[derive(Debug, Clone, Default)]
pub(crate) struct Proxies {
    pub(crate) header: Option<ProxyHeader>,
    pub(crate) trusted: Vec<IpNet>,
}

/// Who is at the other end of a connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Peer {
    /// A client, or a proxy that is not configured.
    Client,
    /// A proxy that names the client at the beginning of the connection.
    ProxyProtocol,
    /// A proxy that names the client of each request.
    Forwarded,
}

impl Proxies {
    pub(crate) fn peer(&self, address: IpAddr) -> Peer {
        match self.header {
            Some(ProxyHeader::ProxyProtocol) if self.trusts(address) => Peer::ProxyProtocol,
            Some(ProxyHeader::Forwarded) if self.trusts(address) => Peer::Forwarded,
            _ => Peer::Client,
        }
    }

    fn trusts(&self, address: IpAddr) -> bool {
        let address = address.to_canonical();
        self.trusted.iter().any(|network| network.contains(&address))
    }

    /// The client's address in `Forwarded`: the last address that is not a trusted proxy. Each proxy appends the
    /// address of its client, so the client itself may have written the elements to the left of this one. `None` if a
    /// proxy has hidden the address, or named none.
    pub(crate) fn client(&self, headers: &HeaderMap) -> Option<IpAddr> {
        let values = headers.get_all(FORWARDED).iter().rev();
        // A client can send bytes that are not text. They must not hide an element that a proxy has appended to them.
        let elements = values.flat_map(|value| value.as_bytes().rsplit(|byte| *byte == b','));
        for element in elements {
            // Without this address, the elements before it are not from a trusted proxy.
            let address = node(str::from_utf8(element).ok()?)?;
            if !self.trusts(address) {
                return Some(address);
            }
        }
        None
    }
}

/// The address in the parameter `for` of an element: `192.0.2.43`, `"192.0.2.43:47011"`, `"[2001:db8::17]:4711"`.
/// `None` for `unknown`, for a name such as `_hidden`, and if the parameter is missing, repeated or malformed.
fn node(element: &str) -> Option<IpAddr> {
    let pairs = element.split(';').filter_map(|pair| pair.trim().split_once('='));
    let mut nodes = pairs.filter(|(name, _)| name.eq_ignore_ascii_case("for")).map(|(_, node)| node);
    let (node, None) = (nodes.next()?, nodes.next()) else { return None };
    let node = match node.strip_prefix('"') {
        Some(quoted) => quoted.strip_suffix('"')?,
        None => node,
    };
    // The port can also be a name, and does not matter.
    match node.strip_prefix('[') {
        Some(v6) => v6.split_once(']')?.0.parse::<Ipv6Addr>().ok().map(IpAddr::from),
        None => node.split(':').next()?.parse::<Ipv4Addr>().ok().map(IpAddr::from),
    }
}

/// Reads the PROXY header at the beginning of a connection of a trusted proxy. Also returns the client's address;
/// `None` if the proxy opened the connection for itself, for example to check the gateway's health.
///
/// # Errors
/// If the header is missing, malformed or late.
pub(crate) async fn read_header<S: AsyncRead + Unpin>(stream: S) -> io::Result<(ProxiedStream<S>, Option<IpAddr>)> {
    let config = ParseConfig { include_tlvs: false, ..ParseConfig::default() };
    let late = || io::Error::new(io::ErrorKind::TimedOut, "the PROXY header did not arrive in time");
    let stream =
        timeout(DEADLINE, ProxiedStream::create_from_tokio(stream, config)).await.map_err(|_elapsed| late())??;
    let client = stream.proxy_header().proxied_address().map(|proxied| proxied.source.ip());
    Ok((stream, client))
}

#[cfg(test)]
mod tests {
    use hyper::header::HeaderValue;
    use tokio::io::AsyncReadExt;

    use super::*;

    fn proxies(header: ProxyHeader) -> Proxies {
        Proxies { header: Some(header), trusted: vec!["10.0.0.0/8".parse().unwrap(), "fd00::/8".parse().unwrap()] }
    }

    fn client(values: &[&str]) -> Option<String> {
        let headers = values.iter().map(|value| (FORWARDED, HeaderValue::from_bytes(value.as_bytes()).unwrap()));
        proxies(ProxyHeader::Forwarded).client(&headers.collect()).map(|address| address.to_string())
    }

    #[test]
    fn only_a_configured_proxy_is_trusted() {
        let peer = |header, address: &str| proxies(header).peer(address.parse().unwrap());
        assert_eq!(peer(ProxyHeader::ProxyProtocol, "10.1.2.3"), Peer::ProxyProtocol);
        assert_eq!(peer(ProxyHeader::Forwarded, "fd00::1"), Peer::Forwarded);
        assert_eq!(peer(ProxyHeader::Forwarded, "::ffff:10.1.2.3"), Peer::Forwarded);
        assert_eq!(peer(ProxyHeader::Forwarded, "11.1.2.3"), Peer::Client);
        assert_eq!(Proxies::default().peer([10, 1, 2, 3].into()), Peer::Client);
    }

    #[test]
    fn the_client_is_the_last_address_that_is_not_a_proxy() {
        for (values, expected) in [
            (&["for=192.0.2.43"][..], Some("192.0.2.43")),
            (&["For=\"192.0.2.43:47011\"; proto=https;by=10.0.0.1"], Some("192.0.2.43")),
            (&["for=192.0.2.43:_port"], Some("192.0.2.43")),
            (&["for=\"[2001:db8::17]:4711\""], Some("2001:db8::17")),
            (&["for=\"[2001:db8::17]\""], Some("2001:db8::17")),
            (&["for=198.51.100.1, for=192.0.2.43"], Some("192.0.2.43")),
            (&["for=198.51.100.1,for=192.0.2.43, for=10.0.0.2"], Some("192.0.2.43")),
            (&["for=198.51.100.1", "for=192.0.2.43"], Some("192.0.2.43")),
            (&["for=\"198.51.100.1, for=192.0.2.43"], Some("192.0.2.43")),
            (&["for=192.0.2.43, for=unknown"], None),
            (&["for=\u{e9}, for=192.0.2.43"], Some("192.0.2.43")),
            (&["for=_hidden"], None),
            (&["for=10.0.0.2"], None),
            (&["for=192.0.2.43;for=192.0.2.44"], None),
            (&["for=\"192.0.2.43"], None),
            (&["for=2001:db8::17"], None),
            (&["for=\"[2001:db8::17\""], None),
            (&["for="], None),
            (&["proto=https"], None),
            (&[""], None),
            (&[], None),
        ] {
            assert_eq!(client(values).as_deref(), expected, "{values:?}");
        }
    }

    #[test]
    fn bytes_that_are_not_text_do_not_hide_the_address_that_a_proxy_appends() {
        let client = |line: &[u8]| {
            let line = HeaderValue::from_bytes(line).unwrap();
            proxies(ProxyHeader::Forwarded).client(&HeaderMap::from_iter([(FORWARDED, line)]))
        };
        assert_eq!(client(b"\xff, for=192.0.2.43"), Some([192, 0, 2, 43].into()));
        assert_eq!(client(b"for=192.0.2.43, for=\xff"), None);
    }

    #[test]
    fn any_bytes_in_forwarded_do_not_hide_the_address_that_a_proxy_appends() {
        let proxies = proxies(ProxyHeader::Forwarded);
        let valid = ["for=192.0.2.43", "For=\"[2001:db8::17]:4711\";proto=https, for=10.0.0.2"];
        garage_fuzz::feed(&valid, |bytes| {
            let Ok(value) = HeaderValue::from_bytes(bytes) else { return false };
            let found = proxies.client(&HeaderMap::from_iter([(FORWARDED, value.clone())]));
            assert!(found.is_none_or(|address| !proxies.trusts(address)), "{found:?}");
            // A proxy appends an element to the line, or a line.
            let (appended, expected) = ("for=198.51.100.7", Some([198, 51, 100, 7].into()));
            let mut lines = HeaderMap::from_iter([(FORWARDED, value)]);
            lines.append(FORWARDED, HeaderValue::from_static(appended));
            assert_eq!(proxies.client(&lines), expected);
            let line = HeaderValue::from_bytes(&[bytes, b", ", appended.as_bytes()].concat()).unwrap();
            assert_eq!(proxies.client(&HeaderMap::from_iter([(FORWARDED, line)])), expected, "one line");
            found.is_some()
        });
    }

    #[test]
    fn any_bytes_are_a_proxy_header_before_the_other_bytes_or_a_short_error() {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_time().build().unwrap();
        let v2 = b"\r\n\r\n\0\r\nQUIT\n\x21\x11\0\x0c\xc0\0\x02\x2b\x0a\0\0\x02\xce\xd9\x01\xbbGET /";
        let v2_with_name =
            b"\r\n\r\n\0\r\nQUIT\n\x21\x11\0\x10\xc0\0\x02\x2b\x0a\0\0\x02\xce\xd9\x01\xbb\x02\0\x01aGET /";
        let valid: [&[u8]; 5] = [
            b"PROXY TCP4 192.0.2.43 10.0.0.2 52953 443\r\nGET /",
            b"PROXY TCP6 2001:db8::17 fd00::2 52953 443\r\nGET /",
            b"PROXY UNKNOWN\r\nGET /",
            v2,
            v2_with_name,
        ];
        garage_fuzz::feed(&valid, |bytes| match runtime.block_on(read_header(bytes)) {
            Ok((mut stream, _)) => {
                let mut rest = Vec::new();
                runtime.block_on(stream.read_to_end(&mut rest)).unwrap();
                assert!(rest.len() < bytes.len() && bytes.ends_with(&rest), "{}", rest.escape_ascii());
                true
            }
            Err(error) => {
                assert!(error.to_string().len() <= 200, "{error}");
                false
            }
        });
    }
}
