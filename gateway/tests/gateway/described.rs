//! The description that clients are made from says what the gateway does: see also `support`, which holds every response
//! of these tests to it.

use std::{collections::BTreeSet, fs, path::Path};

use reqwest::{
    Method, StatusCode,
    header::{HeaderMap, HeaderValue},
};
use serde_json::{Value, json};

use crate::{
    contract::{ASYNCAPI, OPENAPI, ReceivedResponse, faults, frame_faults, methods, paths},
    support::{App, TICKETS},
};

const METHODS: [Method; 7] =
    [Method::GET, Method::HEAD, Method::POST, Method::PUT, Method::PATCH, Method::DELETE, Method::OPTIONS];

/// A path of a template.
fn filled(template: &str) -> String {
    let id = "0198c5a0-7b1e-7c3d-8000-0123456789ab";
    template.replace("{id}", id).replace("{car}", "gt").replace("{slot}", "spoiler").replace("{item}", "wing")
}

#[tokio::test]
async fn it_is_served_to_everybody_and_may_be_kept() {
    let app = App::start().await;
    let response = app.anonymous(Method::GET, "/openapi.json").send().await.unwrap();
    assert_eq!(response.status(), 200);
    assert_eq!(response.headers()["cache-control"], "public, max-age=300");
    assert_eq!(response.text().await.unwrap(), include_str!("../../openapi.json"));
}

#[tokio::test]
async fn each_path_takes_the_methods_described_and_no_other() {
    let app = App::start().await;
    for (template, item) in paths() {
        for method in METHODS {
            // A 405 is held to the description, its Allow too, as any response is.
            let status = app.anonymous(method.clone(), &filled(template)).send().await.unwrap().status().as_u16();
            let operation = &item[method.as_str().to_lowercase()];
            let expected = match (operation, &operation["security"]) {
                (Value::Null, _) => 405,
                (_, Value::Null) => 401,
                _ => 200,
            };
            assert_eq!(status, expected, "{method} {template}");
        }
    }
}

#[test]
fn its_paths_are_the_routes_of_the_code() {
    let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("src");
    let mut files = vec![source.join("routes.rs"), source.join("upgrade.rs")];
    files.extend(fs::read_dir(source.join("routes")).unwrap().map(|entry| entry.unwrap().path()));
    let mut routes = BTreeSet::new();
    for text in files.iter().map(|file| fs::read_to_string(file).unwrap()) {
        for start in ["answer(\"", "const PATH: &str = \""] {
            routes.extend(text.split(start).skip(1).map(|rest| rest.split('"').next().unwrap().to_owned()));
        }
    }
    // That of a path which is none.
    assert!(routes.remove("none"));
    assert_eq!(routes, paths().map(|(path, _)| path.clone()).collect());
}

#[test]
fn its_examples_are_what_it_says() {
    fn examples<'a>(value: &'a Value, found: &mut Vec<(&'a Value, &'a Value)>) {
        if let (Some(schema), Some(example)) = (value.get("schema"), value.get("example")) {
            found.push((schema, example));
        }
        value.as_object().into_iter().flat_map(|object| object.values()).for_each(|value| examples(value, found));
    }
    let mut found = Vec::new();
    for place in ["/paths", "/components/responses"] {
        examples(OPENAPI.at(place), &mut found);
    }
    assert!(found.len() > 40, "{}", found.len());
    for (schema, example) in found {
        assert_eq!(OPENAPI.faults(schema, example), Vec::<String>::new(), "{example}");
    }
}

#[test]
fn a_response_that_is_not_as_described_is_found_out() {
    let known = |body: &Value, status: u16, more: &[(&'static str, &'static str)]| {
        let problem = status >= 400;
        let kind = if problem { "application/problem+json" } else { "application/json" };
        let mut headers = HeaderMap::from_iter([("content-type".parse().unwrap(), HeaderValue::from_static(kind))]);
        for (name, value) in more {
            headers.insert(*name, HeaderValue::from_static(value));
        }
        let (status, body) = (StatusCode::from_u16(status).unwrap(), body.to_string());
        move |method: Method, path: &str| {
            faults(&method, path, &ReceivedResponse { status, headers: &headers, body: Some(body.as_bytes()) })
                .is_empty()
        }
    };
    let regions = json!({"regions": ["eu"]});
    assert!(known(&regions, 200, &[])(Method::GET, "/v1/regions"));
    assert!(!known(&regions, 201, &[])(Method::GET, "/v1/regions"));
    assert!(!known(&regions, 200, &[])(Method::GET, "/v1/wallet"));
    assert!(!known(&regions, 200, &[])(Method::POST, "/v1/regions"));
    assert!(!known(&regions, 200, &[])(Method::GET, "/v1/nowhere"));
    assert!(!known(&json!({"regions": ["EU"]}), 200, &[])(Method::GET, "/v1/regions"));
    assert!(!known(&json!({"regions": [], "more": 1}), 200, &[])(Method::GET, "/v1/regions"));
    let problem = |status: u16| json!({"type": "about:blank", "title": "", "status": status, "detail": ""});
    let challenge = [("www-authenticate", "Bearer")];
    assert!(known(&problem(401), 401, &challenge)(Method::GET, "/v1/regions"));
    assert!(!known(&problem(400), 401, &challenge)(Method::GET, "/v1/regions"));
    assert!(!known(&problem(401), 401, &[])(Method::GET, "/v1/regions"));
    assert!(known(&problem(405), 405, &[("allow", "POST")])(Method::GET, TICKETS));
    assert!(!known(&problem(405), 405, &[("allow", "POST, PUT")])(Method::GET, TICKETS));
    assert!(!known(&problem(409), 409, &[])(Method::POST, TICKETS));
    assert!(methods(OPENAPI.at("/paths/~1v1~1garage~1cars~1{car}")).contains("DELETE"));
}

#[test]
fn a_frame_that_is_not_as_described_is_found_out() {
    let frame = |type_name: &str, data: Value| json!({"seq": 1, "n": 1, "type": type_name, "data": data});
    let id = "0198c5a0-7b1e-7c3d-8000-0123456789ab";
    let released = json!({"player": "ann", "ticket": id, "session": id, "why": "finished"});
    assert!(frame_faults(&frame("Released", released.clone())).is_empty());
    assert!(!frame_faults(&frame("Cancelled", released)).is_empty());
    assert!(frame_faults(&frame("Promoted", json!({"to": "gold"}))).is_empty());
    assert!(!frame_faults(&json!({"seq": 1, "type": "Promoted", "data": {}})).is_empty());
}

#[test]
fn what_both_descriptions_name_is_the_same_in_both() {
    let schemas =
        |document: &'static crate::document::Document| document.at("/components/schemas").as_object().unwrap();
    let both: Vec<_> = schemas(&OPENAPI).iter().filter(|(name, _)| schemas(&ASYNCAPI).contains_key(*name)).collect();
    assert!(both.iter().any(|(name, _)| *name == "Me"));
    for (name, schema) in both {
        assert_eq!(schema, &schemas(&ASYNCAPI)[name], "{name}");
    }
}
