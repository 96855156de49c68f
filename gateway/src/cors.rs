//! CORS: which web pages may call the gateway from a player's browser. Without configured origins, CORS is off.
//!
//! The gateway does not use cookies, so no answer has `Access-Control-Allow-Credentials`.

use std::str::FromStr;

use hyper::{
    HeaderMap, Method, Request, StatusCode, Uri,
    header::{
        ACCESS_CONTROL_ALLOW_HEADERS, ACCESS_CONTROL_ALLOW_METHODS, ACCESS_CONTROL_ALLOW_ORIGIN,
        ACCESS_CONTROL_EXPOSE_HEADERS, ACCESS_CONTROL_MAX_AGE, ACCESS_CONTROL_REQUEST_METHOD, ALLOW, CONTENT_TYPE,
        HeaderValue, ORIGIN, VARY,
    },
};
use warp::reply::Response;

use crate::problem::Problem;

/// The headers of requests that a page can set.
const REQUEST_HEADERS: HeaderValue = HeaderValue::from_static("Authorization, Content-Type, Idempotency-Key");

/// The headers of answers that a page can read, in addition to those that every page can read.
const ANSWER_HEADERS: HeaderValue = HeaderValue::from_static("Retry-After, Location");

/// For how many seconds a browser can cache a preflight answer. Chromium allows at most two hours.
const MAX_AGE: HeaderValue = HeaderValue::from_static("7200");

/// The origin of a web page, as browsers send it: `https://game.example`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Origin(HeaderValue);

impl FromStr for Origin {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let wrong = || {
            format!(
                "{text:?} is not an origin; write it as a browser sends it, such as https://game.example: in lower case, \
                 without a path, and without the default port"
            )
        };
        let uri: Uri = text.parse().ok().ok_or_else(wrong)?;
        let (Some(scheme), Some(authority)) = (uri.scheme_str(), uri.authority()) else { return Err(wrong()) };
        let default_port = matches!((scheme, authority.port_u16()), ("http", Some(80)) | ("https", Some(443)));
        if format!("{scheme}://{authority}") != text.to_ascii_lowercase()
            || text.contains(|c: char| c.is_ascii_uppercase() || c == '@' || c == '*')
            || default_port
        {
            return Err(wrong());
        }
        HeaderValue::from_str(text).map(Self).ok().ok_or_else(wrong)
    }
}

/// The pages that may call the gateway.
#[derive(Debug, Clone, Default)]
pub(crate) struct Cors(pub(crate) Vec<Origin>);

/// The part of a request that its answer's CORS headers depend on.
#[derive(Debug)]
pub(crate) struct Asked {
    /// The origin, if it is configured.
    origin: Option<HeaderValue>,
    preflight: bool,
}

impl Cors {
    fn allows(&self, origin: &HeaderValue) -> bool {
        self.0.iter().any(|Origin(allowed)| allowed == origin)
    }

    pub(crate) fn asked<B>(&self, request: &Request<B>) -> Asked {
        let headers = request.headers();
        let origin = headers.get(ORIGIN).filter(|origin| self.allows(origin)).cloned();
        let preflight = request.method() == Method::OPTIONS && headers.contains_key(ACCESS_CONTROL_REQUEST_METHOD);
        Asked { origin, preflight }
    }

    /// Refuses a WebSocket handshake of a page that is not configured. Browsers apply CORS to requests, but not to
    /// handshakes. A handshake without `Origin` is not from a browser.
    pub(crate) fn check_handshake(&self, headers: &HeaderMap) -> Result<(), Problem> {
        match headers.get(ORIGIN) {
            Some(origin) if !self.0.is_empty() && !self.allows(origin) => Err(Problem::new(
                StatusCode::FORBIDDEN,
                "pages of this origin cannot open a socket; the operator lists the origins that can",
            )),
            _ => Ok(()),
        }
    }

    /// Adds the headers to any answer, so that a page can also read why its request failed. A preflight request gets
    /// the methods that the path supports. The routes answer `OPTIONS`, like every unsupported method, with these
    /// methods in `Allow`.
    pub(crate) fn apply(&self, asked: Asked, response: &mut Response) {
        if self.0.is_empty() {
            return;
        }
        // Also without an allowed origin: a cache must not give this answer to another page.
        response.headers_mut().append(VARY, HeaderValue::from_static("Origin"));
        let Some(origin) = asked.origin else { return };
        if asked.preflight
            && let Some(methods) = response.headers_mut().remove(ALLOW)
        {
            *response.status_mut() = StatusCode::NO_CONTENT;
            *response.body_mut() = Default::default();
            let headers = response.headers_mut();
            headers.remove(CONTENT_TYPE);
            headers.insert(ACCESS_CONTROL_ALLOW_METHODS, methods);
            headers.insert(ACCESS_CONTROL_ALLOW_HEADERS, REQUEST_HEADERS);
            headers.insert(ACCESS_CONTROL_MAX_AGE, MAX_AGE);
        }
        let headers = response.headers_mut();
        headers.insert(ACCESS_CONTROL_ALLOW_ORIGIN, origin);
        headers.insert(ACCESS_CONTROL_EXPOSE_HEADERS, ANSWER_HEADERS);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_origin_is_written_as_a_browser_sends_it() {
        for good in
            ["https://game.example", "http://localhost:3000", "https://[2001:db8::1]:8443", "capacitor://localhost"]
        {
            assert!(good.parse::<Origin>().is_ok(), "{good}");
        }
        for bad in [
            "*",
            "null",
            "",
            "game.example",
            "https://",
            "https://game.example/",
            "https://game.example/play",
            "https://game.example?x",
            "https://Game.example",
            "HTTPS://game.example",
            "https://*.example",
            "https://game.example:443",
            "http://game.example:80",
            "https://ann@game.example",
        ] {
            assert!(bad.parse::<Origin>().is_err(), "{bad}");
        }
    }

    #[test]
    fn any_bytes_are_an_origin_with_the_same_spelling_or_an_error() {
        garage_fuzz::feed(&["https://game.example", "https://[2001:db8::1]:8443", "capacitor://localhost"], |bytes| {
            let text = String::from_utf8_lossy(bytes);
            match text.parse::<Origin>() {
                Ok(Origin(value)) => {
                    assert_eq!(value.as_bytes(), text.as_bytes());
                    assert!(!text.contains(|c: char| c.is_ascii_uppercase() || c == '*' || c == '@'), "{text}");
                    true
                }
                Err(error) => {
                    // It quotes the value of the operator's flag. `Debug` writes a byte as up to 6 characters.
                    assert!(error.len() <= 6 * text.len() + 300, "{}", error.len());
                    false
                }
            }
        });
    }

    #[test]
    fn any_bytes_in_origin_open_a_socket_only_if_they_are_a_configured_origin() {
        let configured = "https://game.example";
        let cors = Cors(vec![configured.parse().unwrap()]);
        garage_fuzz::feed(&[configured], |bytes| {
            let Ok(value) = HeaderValue::from_bytes(bytes) else { return false };
            let request = Request::builder().header(ORIGIN, value).body(()).unwrap();
            let is_configured = bytes == configured.as_bytes();
            assert_eq!(cors.check_handshake(request.headers()).is_ok(), is_configured);
            assert_eq!(cors.asked(&request).origin.is_some(), is_configured);
            is_configured
        });
    }
}
