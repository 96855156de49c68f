//! The configuration file of a nats-server.

use std::{net::SocketAddr, path::Path};

use serde_json::{Map, Value, json};

use super::role::Role;

pub(super) struct Server<'a> {
    pub(super) name: &'a str,
    pub(super) client: SocketAddr,
    pub(super) monitor: SocketAddr,
    pub(super) store: &'a Path,
    pub(super) users: &'a [User<'a>],
    pub(super) system_password: &'a str,
    pub(super) cluster: Option<Cluster<'a>>,
}

pub(super) struct User<'a> {
    pub(super) role: Role,
    pub(super) password: &'a str,
}

pub(super) struct Cluster<'a> {
    pub(super) listen: SocketAddr,
    pub(super) peers: Vec<SocketAddr>,
    pub(super) password: &'a str,
    /// Whether nodes may tell each other where the others listen.
    pub(super) discoverable: bool,
}

/// The file's text. Values are written as JSON, which this format contains, so that nothing needs thought about quotes.
pub(super) fn server(server: &Server<'_>) -> String {
    // sync_interval: without `always` an acknowledged write is lost with the machine for up to two minutes.
    // limits.batch: with the defaults, 50 openings whose writers died stop every commit for 10 s.
    let mut config = json!({
        "server_name": server.name,
        "listen": server.client.to_string(),
        "http": server.monitor.to_string(),
        "jetstream": {
            "store_dir": server.store,
            "sync_interval": "always",
            // What Garage's streams set aside, and room for the history; by default it is three quarters of what the
            // disk has free, which may be too little, and then `garage init` fails.
            "max_file_store": 16_u64 << 30,
            "limits": { "batch": { "max_inflight_per_stream": 500, "timeout": "2s" } },
        },
    });
    if let Some(fields) = config.as_object_mut() {
        fields.extend(accounts(server.users, server.system_password));
        if let Some(cluster) = &server.cluster {
            fields.insert("cluster".to_owned(), routes(cluster));
        }
    }
    format!("{config:#}\n")
}

/// Who may say what, for servers that are configured elsewhere. In the place of each password stands a variable,
/// `$password_<user>`, which they read from their environment or from their configuration.
#[must_use]
pub fn accounts_without_passwords() -> String {
    let variable = |user: &str| format!("$password_{user}");
    let passwords: Vec<_> = Role::ALL.iter().map(|role| (*role, variable(role.name()))).collect();
    let users: Vec<_> = passwords.iter().map(|(role, password)| User { role: *role, password }).collect();
    let text = format!("{:#}", Value::Object(accounts(&users, &variable("sys"))));
    // Without the outermost braces it is part of any file, and a variable in quotes would be a text.
    let lines = text.lines().filter_map(|line| line.strip_prefix("  "));
    lines.fold(String::new(), |page, line| match line.split_once("\"$password_") {
        Some((before, rest)) => page + before + "$password_" + &rest.replacen('"', "", 1) + "\n",
        None => page + line + "\n",
    })
}

fn accounts(users: &[User<'_>], system_password: &str) -> Map<String, Value> {
    let accounts = json!({
        "SYS": { "users": [{ "user": "sys", "password": system_password }] },
        "GARAGE": {
            "jetstream": "enabled",
            "users": users.iter().map(user).collect::<Vec<_>>(),
        },
    });
    Map::from_iter([("system_account".to_owned(), "SYS".into()), ("accounts".to_owned(), accounts)])
}

fn user(user: &User<'_>) -> Value {
    let mut entry = json!({ "user": user.role.name(), "password": user.password });
    if let (Some(rights), Some(fields)) = (user.role.rights(), entry.as_object_mut()) {
        let mut permissions = json!({
            "publish": { "allow": rights.publish },
            "subscribe": { "allow": rights.subscribe },
        });
        if let (true, Some(permissions)) = (rights.responds, permissions.as_object_mut()) {
            permissions.insert("allow_responses".to_owned(), json!({ "max": 1, "expires": "1m" }));
        }
        fields.insert("permissions".to_owned(), permissions);
    }
    entry
}

fn routes(cluster: &Cluster<'_>) -> Value {
    let routes = cluster.peers.iter().map(|peer| format!("nats-route://route:{}@{peer}", cluster.password));
    let mut config = json!({
        "name": "garage",
        "listen": cluster.listen.to_string(),
        // Clients are given all addresses anyway.
        "no_advertise": true,
        "authorization": { "user": "route", "password": cluster.password },
        "routes": routes.collect::<Vec<_>>(),
    });
    if let (false, Some(fields)) = (cluster.discoverable, config.as_object_mut()) {
        // Nodes gossip where each listens and connect there directly, past the proxies. No option stops it
        // (`no_advertise` is about clients), so they are told a place where nobody is.
        fields.insert("advertise".to_owned(), json!("127.0.0.1:1"));
    }
    config
}
