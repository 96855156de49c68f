//! Permissions: the director's in the cluster, the users' in NATS and Redis, the pods' on the network.

use std::{collections::BTreeSet, fs, path::Path};

use garage_stack::servers::Redis;
use serde_json::{Value, json};

use crate::support::{overlays, root, run, secrets_yaml, variables};

fn read(path: &str) -> String {
    fs::read_to_string(root().join(path)).unwrap()
}

fn rules(role: &Value) -> BTreeSet<String> {
    let each =
        |list: &Value| list.as_array().unwrap().iter().map(|one| one.as_str().unwrap().to_owned()).collect::<Vec<_>>();
    let rules = role["rules"].as_array().unwrap().iter().flat_map(|rule| {
        assert_eq!(rule["apiGroups"], json!([""]));
        let verbs = each(&rule["verbs"]);
        let resources = each(&rule["resources"]).into_iter();
        resources.flat_map(move |resource| verbs.clone().into_iter().map(move |verb| format!("{resource} {verb}")))
    });
    rules.collect()
}

#[test]
fn the_director_has_exactly_the_permissions_it_uses() {
    let list = read("deploy/kubernetes/base/director.verbs");
    let uses: BTreeSet<_> = list.lines().filter(|line| !line.starts_with('#')).map(ToOwned::to_owned).collect();
    let (nodes, games): (BTreeSet<_>, BTreeSet<_>) = uses.into_iter().partition(|line| line.starts_with("nodes "));
    for overlay in overlays() {
        let role = overlay.object("Role", "director");
        assert_eq!(role["metadata"]["namespace"], "garage-games");
        assert_eq!(rules(role), games);
        assert_eq!(rules(overlay.object("ClusterRole", "garage-director")), nodes);
        // No other account has any permission.
        for object in overlay.objects.iter().filter(|object| object["kind"].as_str().unwrap().ends_with("RoleBinding"))
        {
            let director = json!([{"kind": "ServiceAccount", "name": "director", "namespace": "garage"}]);
            assert_eq!(object["subjects"], director);
        }
    }
}

#[test]
fn nats_accepts_its_configuration_only_with_the_operator_secret() {
    let folder = tempfile::tempdir().unwrap();
    let files = folder.path().join("files");
    secrets_yaml(&files);
    for overlay in overlays() {
        let here = folder.path().join(overlay.name);
        let (config, secret) = (here.join("nats"), here.join("nats-secret"));
        fs::create_dir_all(&config).unwrap();
        fs::create_dir_all(&secret).unwrap();
        for (name, text) in overlay.object("ConfigMap", "nats")["data"].as_object().unwrap() {
            fs::write(config.join(name), text.as_str().unwrap()).unwrap();
        }
        let check = || {
            let home = std::env::var("HOME").unwrap_or_default();
            let cache = std::env::var("XDG_CACHE_HOME").unwrap_or_else(|_| format!("{home}/.cache"));
            let bin = fs::read_dir(Path::new(&cache).join("garage/bin")).unwrap().map(|entry| entry.unwrap().path());
            let nats = bin.map(|folder| folder.join("nats-server")).find(|file| file.is_file());
            let nats = nats.expect("nats-server is not installed; run deploy/local/install.sh");
            let file = config.join("nats.conf");
            run(&nats, &["-t", "-c", file.to_str().unwrap()], &[("POD_NAME".into(), "nats-0".into())], "")
        };
        let (accepted, text) = check();
        assert!(!accepted && text.contains("operator.conf"), "NATS started without an operator: {text}");
        fs::copy(files.join("nats-operator.conf"), secret.join("operator.conf")).unwrap();
        fs::copy(files.join("nats-routes.conf"), secret.join("routes.conf")).unwrap();
        let (accepted, text) = check();
        assert!(accepted, "{}: {text}", overlay.name);
    }
}

#[test]
fn redis_users_have_the_same_rights_as_on_the_local_stack() {
    let folder = tempfile::tempdir().unwrap();
    secrets_yaml(folder.path());
    let read = |name: &str| fs::read_to_string(folder.path().join(name)).unwrap().trim_end().to_owned();
    let (all, reader) = (read("redis.password"), read("redis-gateway.password"));
    let expected = format!("user default on >{all} ~* &* +@all\nuser gateway on >{reader} {}", Redis::reader_rights());
    assert_eq!(read("redis-users.acl"), expected);
}

#[test]
fn a_pod_can_reach_a_server_if_and_only_if_it_uses_it() {
    for overlay in overlays() {
        for pod in overlay.pods() {
            let variables = variables(&pod.spec["containers"][0]);
            for (variable, label) in [
                ("GARAGE_NATS_URL", "garage/log"),
                ("GARAGE_REDIS_URL", "garage/redis"),
                ("GARAGE_MYSQL_URL", "garage/mysql"),
            ] {
                let (uses, may_reach) = (variables.contains_key(variable), pod.labels[label] == "true");
                assert_eq!(uses, may_reach, "{}: {variable} and {label}", pod.name);
            }
        }
    }
}

#[test]
fn nats_is_open_to_the_game_nodes_address_ranges_only() {
    for overlay in overlays() {
        let from = &overlay.object("NetworkPolicy", "nats")["spec"]["ingress"][0]["from"];
        let ranges: Vec<_> =
            from.as_array().unwrap().iter().filter_map(|peer| peer["ipBlock"]["cidr"].as_str()).collect();
        assert!(!ranges.is_empty(), "game servers cannot send reports");
        for range in ranges {
            let bits: u8 = range.split_once('/').unwrap().1.parse().unwrap();
            assert!(bits >= 8, "{range}");
        }
        for namespace in ["garage", "garage-games"] {
            let mut policies = overlay.objects.iter().filter(|object| object["kind"] == "NetworkPolicy");
            let denies = policies.any(|policy| {
                policy["metadata"]["namespace"] == namespace
                    && policy["spec"] == json!({"podSelector": {}, "policyTypes": ["Ingress", "Egress"]})
            });
            assert!(denies, "{namespace}");
        }
    }
}
