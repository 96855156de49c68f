//! What happens when nodes disappear or cannot be read.

use super::*;

#[tokio::test]
async fn a_node_that_is_gone_fails_the_instances_on_it_and_no_others() {
    if impossible_with_real_kubelet("run pods on nodes that do not exist") {
        return;
    }
    let mut fixture = Fixture::started().await;
    let lost = format!("lost-{}", fixture.cluster.namespace);
    fixture.cluster.add_node(&lost, &[("ExternalIP", "203.0.113.12")]).await;
    let (kept, on_lost) = (fixture.session().await, fixture.session().await);
    fixture.cluster.bind(kept).await;
    fixture.cluster.bind_to(on_lost, &lost).await;
    fixture.scheduled(kept).await;
    fixture.scheduled(on_lost).await;
    fixture.stop().await;
    fixture.cluster.nodes.delete(&lost, &DeleteParams::default()).await.unwrap();
    fixture.start();
    let message = format!("node {lost} does not exist any more");
    fixture.wait_for_failure(on_lost, "node-lost", &message).await;
    // Before it is placed, too.
    let never_placed = fixture.session().await;
    fixture.cluster.bind_to(never_placed, &lost).await;
    fixture.wait_for_failure(never_placed, "node-lost", &message).await;
    let next = fixture.session().await;
    fixture.cluster.bind(next).await;
    fixture.scheduled(next).await;
    let history = fixture.load(kept).await.history;
    assert!(matches!(history.last().unwrap().event, Event::PodScheduled(_)), "{history:?}");
}

#[tokio::test]
async fn a_node_that_cannot_be_read_delays_only_the_instances_on_it() {
    if impossible_with_real_kubelet("run pods on a certain node") {
        return;
    }
    let fixture = Fixture::started().await;
    let unreadable = format!("unreadable-{}", fixture.cluster.namespace);
    fixture.cluster.add_node(&unreadable, &[("ExternalIP", "203.0.113.12")]).await;
    fixture.cluster.proxy.fail_always("get", "nodes", &unreadable, Answer::Internal);
    let delayed = fixture.session().await;
    fixture.cluster.bind_to(delayed, &unreadable).await;
    until("a request for the node", async || {
        let mut requests = fixture.cluster.proxy.requests().into_iter();
        requests.any(|request| request.resource == "nodes" && request.status == Some(500)).then_some(())
    })
    .await;
    // Placements, exits, closed sessions and lost pods of other nodes are handled.
    let [placed, exits, closed] = [fixture.session().await, fixture.session().await, fixture.session().await];
    for name in [placed, exits, closed] {
        fixture.cluster.bind(name).await;
        fixture.scheduled(name).await;
    }
    fixture.cluster.container(exits, "Failed", json!({"terminated": {"exitCode": 2, "reason": "Error"}})).await;
    fixture.wait_for_failure(exits, "exited", "exit code 2").await;
    fixture.close(closed).await;
    fixture.cluster.confirm_deletion(closed).await;
    fixture.cluster.gone(closed).await;
    for name in [placed, delayed] {
        let history = fixture.load(name).await.history;
        assert!(!history.iter().any(|recorded| matches!(recorded.event, Event::PodFailed(_))), "{history:?}");
    }
}

#[tokio::test]
async fn a_node_is_read_once_for_its_instances_and_not_again_while_they_run() {
    if impossible_with_real_kubelet("run pods on a certain node") {
        return;
    }
    let fixture = Fixture::started().await;
    let names = join_all((0..5).map(|_| fixture.session())).await;
    for name in &names {
        fixture.cluster.bind(*name).await;
    }
    for name in &names {
        fixture.scheduled(*name).await;
    }
    let reads = fixture.cluster.proxy.requests().into_iter().filter(|request| request.resource == "nodes").count();
    assert_eq!(reads, 1);
    // The node goes, but the players know the address: its pods end when the cluster says so.
    fixture.cluster.nodes.delete(&fixture.cluster.node, &DeleteParams::default()).await.unwrap();
    let [gone, ..] = names[..] else { unreachable!() };
    let message = "PodGC: node no longer exists";
    let condition =
        json!({"type": "DisruptionTarget", "status": "True", "reason": "DeletionByPodGC", "message": message});
    fixture.cluster.status(gone, json!({"phase": "Failed", "conditions": [condition]})).await;
    fixture.wait_for_failure(gone, "node-lost", message).await;
    let history = fixture.load(names[1]).await.history;
    assert!(matches!(history.last().unwrap().event, Event::PodScheduled(_)), "{history:?}");
}
