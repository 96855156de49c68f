//! Game servers as pods of a cluster, as a person has them.

use nix::sys::signal::Signal;

use crate::{
    demo::Demo,
    support::{cluster::Cluster, place},
};

#[tokio::test]
async fn a_demo_on_a_cluster_ends_well_and_leaves_no_pod_and_no_secret() {
    let _place = place().await;
    let cluster = Cluster::new().await;
    let mut demo = Demo::start_with(&cluster.flags(), &[]);
    demo.assert_ends_well().await;
    let said = format!("no pod and no secret of it is left in namespace {}", cluster.namespace());
    assert!(demo.printed().contains(&said));
    cluster.assert_empty().await;
    if let Some(double) = &cluster.double {
        let made = double.asked().into_iter().filter(|asked| (asked.verb, asked.status) == ("create", 201));
        assert_eq!(made.filter(|asked| asked.resource == "pods").count(), 2, "one for each match");
    }
    cluster.remove().await;
}

#[tokio::test]
async fn a_demo_on_a_cluster_that_is_interrupted_leaves_no_pod_and_no_secret() {
    let _place = place().await;
    let cluster = Cluster::new().await;
    let mut demo = Demo::start_with(&cluster.flags(), &[("GARAGE_GAME_ARG", "--distance-m 50000")]);
    cluster.until_running(2).await;
    demo.process.signal(Signal::SIGINT).unwrap();
    assert_eq!(demo.code().await, Some(1));
    assert!(demo.printed().contains("error: interrupted"));
    cluster.assert_empty().await;
    demo.assert_nothing_left().await;
    cluster.remove().await;
}
