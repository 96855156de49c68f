//! The metrics of the workers, and the dashboard and the alert rules that use them.

use std::{
    collections::BTreeSet,
    env, fs,
    path::{Path, PathBuf},
    process::Command,
};

use serde_json::{Value, json};

use crate::support::{Setup, play, until};

fn repository() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).ancestors().nth(2).unwrap().to_owned()
}

fn read(path: &str) -> String {
    fs::read_to_string(repository().join(path)).unwrap()
}

/// The names of Garage's metrics in a text. A histogram is one metric, although it has three names.
fn metrics(text: &str) -> BTreeSet<String> {
    let words = text.split(|c: char| !(c.is_ascii_alphanumeric() || c == '_'));
    let names = words.filter(|word| word.starts_with("garage_"));
    let histogram = |name: &str| {
        let parts = ["_bucket", "_sum", "_count"];
        parts
            .iter()
            .find_map(|part| name.strip_suffix(part).filter(|base| base.ends_with("_seconds")).map(str::to_owned))
    };
    names.map(|name| histogram(name).unwrap_or_else(|| name.into())).collect()
}

/// All values of the field `expr`, at any depth.
fn expressions(json: &Value) -> Vec<String> {
    match json {
        Value::Object(object) => {
            let own = object.get("expr").and_then(Value::as_str).map(str::to_owned);
            own.into_iter().chain(object.values().flat_map(expressions)).collect()
        }
        Value::Array(array) => array.iter().flat_map(expressions).collect(),
        _ => Vec::new(),
    }
}

fn dashboard() -> Vec<String> {
    expressions(&serde_json::from_str(&read("deploy/dashboards/garage.json")).unwrap())
}

/// The text of all workers' /metrics.
async fn scrape(admins: &[String]) -> String {
    let mut text = String::new();
    for admin in admins {
        let response = reqwest::get(format!("http://{admin}/metrics")).await.unwrap();
        text += &response.error_for_status().unwrap().text().await.unwrap();
    }
    text
}

/// The names of the metrics that have a sample, and not only a description.
fn sampled(scrape: &str) -> BTreeSet<String> {
    metrics(&scrape.lines().filter(|line| !line.starts_with('#')).collect::<Vec<_>>().join("\n"))
}

/// The names of the metrics that the workers describe.
fn described(scrape: &str) -> BTreeSet<String> {
    let help = scrape.lines().filter_map(|line| line.strip_prefix("# HELP ")?.split(' ').next());
    metrics(&help.collect::<Vec<_>>().join("\n"))
}

/// The sum of a sample, such as `garage_matches_total{queue="ranked"}`, over all workers.
fn sum(scrape: &str, sample: &str) -> f64 {
    let values = scrape.lines().filter_map(|line| line.strip_prefix(sample)?.trim().parse::<f64>().ok());
    values.reduce(|sum, value| sum + value).unwrap_or_else(|| panic!("{sample} is missing in\n{scrape}"))
}

#[tokio::test]
async fn a_scrape_has_every_metric_of_the_dashboard_and_the_alerts_before_anything_fails() {
    let mut garage = Setup::short().start().await;
    let admins: Vec<_> = garage.stack.all_instances().map(|instance| instance.admin.clone()).collect();
    assert_eq!(admins.len(), 5);
    play(&garage.bots("player", 2)).await;
    garage.settled().await;
    // The streams are read every few seconds.
    let log = r#"garage_stream_messages{stream="GARAGE"} "#;
    let text = until("the log's messages are counted", async || {
        let text = scrape(&admins).await;
        let messages: Option<f64> = text.lines().find_map(|line| line.strip_prefix(log)?.parse().ok());
        (messages? > 0.0).then_some(text)
    })
    .await;

    let used = metrics(&[read("deploy/dashboards/alerts.yaml"), dashboard().join("\n")].join("\n"));
    let found = sampled(&text);
    let missing: Vec<_> = used.difference(&found).collect();
    assert!(missing.is_empty(), "not in a scrape: {missing:?}");
    // All metrics have a description and a line in the documentation, and no others do.
    assert_eq!(found.difference(&described(&text)).collect::<Vec<_>>(), [""; 0], "not described");
    let operating = read("deploy/docs/operating.md");
    let documented = operating.lines().filter_map(|line| line.strip_prefix("| `garage_")?.split(['`', '{']).next());
    let documented: BTreeSet<_> = documented.map(|name| format!("garage_{name}")).collect();
    assert_eq!(documented, described(&text), "deploy/docs/operating.md");

    for (sample, expected) in [
        (r#"garage_matches_total{queue="ranked"}"#, 1.0),
        (r#"garage_queue_players{queue="ranked"}"#, 2.0),
        (r#"garage_queue_wait_seconds_count{queue="ranked"}"#, 2.0),
        (r#"garage_session_step_seconds_count{step="requested"}"#, 1.0),
        (r#"garage_session_step_seconds_count{step="scheduled"}"#, 1.0),
        (r#"garage_session_step_seconds_count{step="ready"}"#, 1.0),
        (r#"garage_session_step_seconds_count{step="opened"}"#, 1.0),
        ("garage_session_start_seconds_count", 1.0),
        (r#"garage_gateway_request_seconds_count{route="/v1/matchmaking/tickets",status="2xx"}"#, 2.0),
        (r#"garage_gateway_limited_total{limit="tickets"}"#, 0.0),
        (r#"garage_reactions_total{consumer="session",outcome="dead"}"#, 0.0),
        (r#"garage_lease_held{lease="session.projector"}"#, 1.0),
        (r#"garage_stream_bytes_max{stream="GARAGE"}"#, (8_u64 << 30) as f64),
        (r#"garage_worker_ready{worker="director"}"#, 1.0),
    ] {
        assert_eq!(sum(&text, sample), expected, "{sample}");
    }
    assert!(sum(&text, r#"garage_append_seconds_count{outcome="stored"}"#) > 0.0);
    assert!(sum(&text, r#"garage_reaction_seconds_count{consumer="inventory"}"#) > 0.0);
}

/// promtool from the `PATH`, or else the one that `install.sh --tests` installed.
fn promtool() -> PathBuf {
    let path = env::var_os("PATH").unwrap_or_default();
    let on_path = env::split_paths(&path).map(|folder| folder.join("promtool")).find(|file| file.is_file());
    let cache = env::var_os("XDG_CACHE_HOME").map(PathBuf::from);
    let cache = cache.or_else(|| Some(PathBuf::from(env::var_os("HOME")?).join(".cache")));
    let installed = cache.map(|cache| cache.join("garage/bin/promtool")).filter(|file| file.is_file());
    on_path.or(installed).expect("promtool is not installed; run deploy/local/install.sh --tests")
}

fn run_promtool(arguments: &[&str], file: &Path) {
    let output = Command::new(promtool()).args(arguments).arg(file).output().unwrap();
    let text = String::from_utf8([output.stdout, output.stderr].concat()).unwrap();
    assert!(output.status.success(), "promtool {arguments:?}:\n{text}");
}

#[test]
fn promtool_accepts_the_alert_rules_and_the_dashboard() {
    let folder = repository().join("deploy/dashboards");
    run_promtool(&["check", "rules"], &folder.join("alerts.yaml"));
    run_promtool(&["test", "rules"], &folder.join("alerts.test.yaml"));
    // promtool does not read dashboards, so their queries become rules.
    let queries = dashboard();
    assert!(queries.len() > 20);
    let rule = |(number, query): (usize, &String)| json!({ "record": format!("query_{number}"), "expr": query.replace("$__rate_interval", "1m") });
    let rules: Vec<_> = queries.iter().enumerate().map(rule).collect();
    let file = tempfile::NamedTempFile::new().unwrap();
    // JSON is YAML.
    let groups = json!({ "groups": [{ "name": "dashboard", "rules": rules }] });
    fs::write(file.path(), groups.to_string()).unwrap();
    run_promtool(&["check", "rules"], file.path());
}

#[test]
fn every_alert_is_documented_and_names_a_section_of_the_operators_page() {
    let (rules, operating) = (read("deploy/dashboards/alerts.yaml"), read("deploy/docs/operating.md"));
    let values = |field: &str| -> BTreeSet<_> {
        rules.lines().filter_map(|line| line.trim().trim_start_matches("- ").strip_prefix(field)).collect()
    };
    let anchor = |heading: &str| heading.trim_start_matches('#').trim().to_lowercase().replace(' ', "-");
    let anchors: BTreeSet<_> = operating.lines().filter(|line| line.starts_with('#')).map(anchor).collect();
    let runbooks = values("runbook: ");
    let unknown: Vec<_> = runbooks.iter().filter(|runbook| !anchors.contains(**runbook)).collect();
    assert!(unknown.is_empty() && !runbooks.is_empty(), "no section: {unknown:?}");
    let documented: BTreeSet<_> =
        operating.lines().filter_map(|line| line.strip_prefix("| `Garage")?.split('`').next()).collect();
    let alerts: BTreeSet<_> = values("alert: Garage");
    assert_eq!(documented, alerts);
}
