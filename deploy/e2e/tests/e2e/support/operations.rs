//! Runs the shell blocks of `deploy/docs/operating.md` exactly as they are written there.

use std::path::Path;

use garage_stack::{
    servers::{Database, Nats, Role},
    workers::binary,
};
use tokio::{process::Command, time::timeout};

use super::DEADLINE;

const PAGE: &str = include_str!("../../../../docs/operating.md");

/// Runs the shell block that follows the comment `<!-- mark -->`, in a folder, and returns its standard output.
pub(crate) async fn run(mark: &str, folder: &Path, variables: &[(&str, String)]) -> String {
    let begin = format!("<!-- {mark} -->\n```sh\n");
    let (_, rest) = PAGE.split_once(&begin).unwrap_or_else(|| panic!("no block is marked {mark}"));
    let (block, _) = rest.split_once("```").unwrap();
    let programs = binary("garage").unwrap().parent().unwrap().display().to_string();
    let path = format!("{programs}:{}", std::env::var("PATH").unwrap());
    let mut shell = Command::new("bash");
    shell.args(["-euo", "pipefail", "-c", block]).current_dir(folder).env("PATH", path).kill_on_drop(true);
    shell.envs(variables.iter().map(|(name, value)| (name, value)));
    let output = timeout(DEADLINE, shell.output()).await.expect("the block ends").unwrap();
    assert!(output.status.success(), "{mark}: {}", String::from_utf8_lossy(&[output.stdout, output.stderr].concat()));
    String::from_utf8(output.stdout).unwrap()
}

/// The variables of an operator's shell: where the servers are, and the backup's folder.
pub(crate) fn variables(nats: &Nats, database: &Database, backup: &Path) -> Vec<(&'static str, String)> {
    let url = database.url();
    let (host, port) = url.trim_end_matches("/garage").rsplit_once('@').unwrap().1.split_once(':').unwrap();
    vec![
        ("GARAGE_NATS_URL", nats.url()),
        ("GARAGE_NATS_CREDENTIALS", nats.credentials(Role::Admin).display().to_string()),
        ("GARAGE_MYSQL_URL", url.clone()),
        ("GARAGE_MYSQL_PASSWORD_FILE", database.password_file().display().to_string()),
        ("MYSQL_HOST", host.into()),
        ("MYSQL_PORT", port.into()),
        ("NODES", nats.nodes().to_string()),
        ("BACKUP", backup.display().to_string()),
    ]
}

/// Restores a backup to new servers in `root`. A Garage that starts in this folder has their data.
pub(crate) async fn restore(root: &Path, nodes: usize, backup: &Path) {
    let (mut nats, mut database) = (Nats::start(root, nodes).await.unwrap(), Database::start(root).await.unwrap());
    run("restore", root, &variables(&nats, &database, backup)).await;
    tokio::join!(nats.stop(), database.stop());
}
