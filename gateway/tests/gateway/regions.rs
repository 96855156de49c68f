//! Where clients measure their latency to each region.

use reqwest::Method;
use serde_json::json;

use crate::support::App;

#[tokio::test]
async fn each_region_has_a_url_to_measure_against() {
    let app = App::start().await;
    let endpoint = |region: &str| json!({"region": region, "url": "/v1/ping", "default_latency_ms": 120});
    let endpoints = [endpoint("eu"), endpoint("us")];
    let expected = json!({"regions": ["eu", "us"], "endpoints": endpoints, "measure_every_ms": 300_000});
    assert_eq!(app.get("ann", "/v1/regions").await, (200, expected));

    let response = app.anonymous(Method::GET, "/v1/ping").send().await.unwrap();
    assert_eq!((response.status().as_u16(), &response.headers()["cache-control"]), (204, &"no-store".parse().unwrap()));
    assert_eq!(response.text().await.unwrap(), "");
}

#[tokio::test]
async fn the_queues_file_can_set_the_url_of_a_region() {
    let app = App::start_with(|folder| {
        let queues = "[queues.ranked]\nplayers = 2\nrank_band = 200\ntimeout_s = 120\nregions = {eu = 120, us = 90}\n\
            [queues.casual]\nplayers = 2\nrank_band = 200\ntimeout_s = 120\nregions.us = 60\n\
            [regions.eu]\nmeasure_url = \"https://eu.example.com/ping\"\n";
        std::fs::write(folder.path().join("queues.toml"), queues).unwrap();
        Vec::new()
    })
    .await;
    let (_, body) = app.get("ann", "/v1/regions").await;
    let expected = json!([
        {"region": "eu", "url": "https://eu.example.com/ping", "default_latency_ms": 120},
        {"region": "us", "url": "/v1/ping", "default_latency_ms": 60},
    ]);
    assert_eq!(body["endpoints"], expected);

    // A client that cannot measure is accepted by every queue.
    for (player, queue) in [("ann", "ranked"), ("bob", "casual")] {
        let body = json!({"queue": queue, "latencies": {"us": 60}});
        let request = app.request(player, Method::POST, crate::support::TICKETS).json(&body);
        assert_eq!(request.send().await.unwrap().status(), 201, "{queue}");
    }
}
