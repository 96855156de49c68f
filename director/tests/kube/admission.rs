//! What happens when the API server refuses pods.

use super::*;

/// Lets the namespace admit only pods of this security level.
async fn enforce(cluster: &Cluster, level: &str) {
    let labels = json!({"metadata": {"labels": {"pod-security.kubernetes.io/enforce": level}}});
    let namespaces: Api<Namespace> = Api::all(cluster.client.clone());
    namespaces.patch(&cluster.namespace, &PatchParams::default(), &Patch::Merge(labels)).await.unwrap();
}

async fn limit_cpu(cluster: &Cluster, max: &str) {
    let limits = json!([{"type": "Container", "max": {"cpu": max}}]);
    let range = serde_json::from_value(json!({"metadata": {"name": "r"}, "spec": {"limits": limits}})).unwrap();
    let ranges: Api<LimitRange> = Api::namespaced(cluster.client.clone(), &cluster.namespace);
    ranges.create(&PostParams::default(), &range).await.unwrap();
}

/// A template with more than the default resources.
const TWO_CPUS: &str = "spec: {schedulerName: the-test, containers: [{name: gameserver, resources: {requests: \
                        {cpu: '2'}, limits: {cpu: '2'}}}]}";

/// Waits until a running director has checked that its pods are admitted.
async fn checked(fixture: &Fixture) {
    until("the check of a pod", async || {
        fixture.cluster.proxy.requests().iter().any(|request| request.dry_run).then_some(())
    })
    .await;
}

#[tokio::test]
async fn a_pod_that_the_namespace_does_not_admit_fails_the_attempt_at_once_with_the_servers_words() {
    let mut fixture = Fixture::new().await;
    fs::write(fixture.path("pod.yaml"), TWO_CPUS).unwrap();
    fixture.start();
    checked(&fixture).await;
    limit_cpu(&fixture.cluster, "1500m").await;
    let name = fixture.session().await;
    let failed = fixture.failed(name).await;
    let message = format!("pods \"{name}\" is forbidden: maximum cpu usage per Container is 1500m, but limit is 2");
    assert_eq!((failed.reason.as_str(), failed.message), ("pod-refused", message));
    fixture.cluster.gone(name).await;

    enforce(&fixture.cluster, "baseline").await;
    let ranges: Api<LimitRange> = Api::namespaced(fixture.cluster.client.clone(), &fixture.cluster.namespace);
    ranges.delete("r", &DeleteParams::default()).await.unwrap();
    let name = fixture.session().await;
    let failed = fixture.failed(name).await;
    let violates = "violates PodSecurity \"baseline:latest\": host namespaces (hostNetwork=true)";
    assert_eq!(failed.reason, "pod-refused");
    assert!(failed.message.contains(violates), "{}", failed.message);
    fixture.cluster.gone(name).await;
    assert_eq!(fixture.load(name).await.history.len(), 3, "matched, requested, failed");
}

#[tokio::test]
async fn the_words_of_a_webhook_are_written_as_one_short_printable_line() {
    let fixture = Fixture::started().await;
    let Some(simulated) = &fixture.cluster._simulated else {
        eprintln!("not tested: a real cluster's webhook needs a server");
        return;
    };
    checked(&fixture).await;
    simulated.deny_pods("pods.example.com", &format!("no\r\n\u{1b}[31mhost\u{202e} network: {}", "x".repeat(500)));
    let name = fixture.session().await;
    let failed = fixture.failed(name).await;
    assert_eq!(failed.reason, "pod-refused");
    let begin = "admission webhook \"pods.example.com\" denied the request: no [31mhost network: xxx";
    assert!(failed.message.starts_with(begin), "{:?}", failed.message);
    assert_eq!((failed.message.chars().count(), failed.message.chars().last()), (200, Some('…')));
}

#[tokio::test]
async fn a_director_without_the_right_to_create_pods_fails_no_match() {
    let fixture = Fixture::started().await;
    for _ in 0..2 {
        fixture.cluster.fail("create", "pods", Answer::Forbidden);
        fixture.cluster.fail("create", "pods", Answer::NoServiceAccount);
    }
    let name = fixture.session().await;
    fixture.cluster.bind(name).await;
    fixture.scheduled(name).await;
    let history = fixture.load(name).await.history;
    assert!(!history.iter().any(|recorded| matches!(recorded.event, Event::PodFailed(_))), "{history:?}");
}

#[tokio::test]
async fn a_pod_that_exists_already_is_accepted_although_the_quota_is_full() {
    let fixture = Fixture::started().await;
    let quota = json!({"metadata": {"name": "q"}, "spec": {"hard": {"pods": "1"}}});
    let quota = serde_json::from_value(quota).unwrap();
    fixture.cluster.quotas.create(&PostParams::default(), &quota).await.unwrap();
    // The pod is created, but the director does not learn of it, and asks for it again.
    fixture.cluster.fail("create", "pods", Answer::Lost);
    let name = fixture.session().await;
    fixture.cluster.bind(name).await;
    fixture.scheduled(name).await;
    assert_eq!(fixture.load(name).await.history.len(), 3, "matched, requested, scheduled");
}

#[tokio::test]
async fn a_director_does_not_start_if_its_pods_would_be_refused_and_says_why_and_what_to_do() {
    let mut fixture = Fixture::new().await;
    let namespace = fixture.cluster.namespace.clone();
    fs::write(fixture.path("pod.yaml"), TWO_CPUS).unwrap();
    enforce(&fixture.cluster, "baseline").await;
    fixture.start();
    let error = fixture.start_up_error().await;
    for words in [
        format!("the API server would refuse every game server in namespace {namespace}"),
        "violates PodSecurity \"baseline:latest\": host namespaces (hostNetwork=true)".into(),
        format!("`kubectl label --overwrite namespace {namespace} pod-security.kubernetes.io/enforce=privileged`"),
    ] {
        assert!(error.contains(&words), "{words}: {error}");
    }
    enforce(&fixture.cluster, "privileged").await;

    limit_cpu(&fixture.cluster, "1500m").await;
    fixture.start();
    let error = fixture.start_up_error().await;
    for words in ["maximum cpu usage per Container is 1500m, but limit is 2", "raise the LimitRange", "--pod-template"]
    {
        assert!(error.contains(words), "{words}: {error}");
    }
    fs::write(fixture.path("pod.yaml"), "spec: {schedulerName: the-test}").unwrap();
    fixture.start();
    checked(&fixture).await;

    fixture.cluster.fail_dry_run(Answer::Forbidden);
    fixture.stop().await;
    fixture.start();
    let error = fixture.start_up_error().await;
    assert!(error.contains("cannot create resource \"pods\"") && error.contains("bind a role"), "{error}");

    fixture.flags = vec!["--namespace=does-not-exist".into()];
    fixture.start();
    let error = fixture.start_up_error().await;
    let words = "namespaces \"does-not-exist\" not found";
    assert!(error.contains(words) && error.contains("`kubectl create namespace does-not-exist`"), "{error}");
    assert_eq!(fixture.cluster.created(), 0, "a dry run creates nothing");
}

#[tokio::test]
async fn a_director_starts_if_the_api_server_does_not_answer_or_the_quota_is_full() {
    let mut fixture = Fixture::new().await;
    for answer in [Answer::Internal, Answer::TooMany, Answer::Unauthorized, Answer::NoServiceAccount, Answer::Lost] {
        fixture.cluster.fail_dry_run(answer);
        fixture.start();
        let name = fixture.session().await;
        fixture.cluster.bind(name).await;
        fixture.scheduled(name).await;
        fixture.stop().await;
    }
    let quota = json!({"metadata": {"name": "q"}, "spec": {"hard": {"pods": "0"}}});
    let quota = serde_json::from_value(quota).unwrap();
    fixture.cluster.quotas.create(&PostParams::default(), &quota).await.unwrap();
    fixture.cluster.wait_for_quota().await;
    fixture.start();
    // The director runs: it removes what no session needs.
    let closed = fixture.session().await;
    fixture.close(closed).await;
    fixture.cluster.gone(closed).await;
    fixture.stop().await;
}

#[tokio::test]
async fn a_template_that_raises_only_the_requests_starts_servers_and_one_that_contradicts_itself_is_refused() {
    let mut fixture = Fixture::new().await;
    let resources = |resources: &str| {
        let container = format!("{{name: gameserver, resources: {{{resources}}}}}");
        fs::write(fixture.path("pod.yaml"), format!("spec: {{schedulerName: the-test, containers: [{container}]}}"))
            .unwrap();
    };
    resources("requests: {cpu: 1500m, memory: 1Gi}, limits: {cpu: '1'}");
    let refused = format!("{:#}", fixture.config().check().unwrap_err());
    let expected = "pod.yaml (--pod-template): container gameserver requests 1500m of cpu, but its limit is 1; raise the \
                    limit or lower the request";
    assert!(refused.ends_with(expected), "{refused}");
    resources("requests: {cpu: '1500m', memory: 1Gi}");
    fixture.config().check().unwrap();
    fixture.start();
    let name = fixture.session().await;
    fixture.cluster.bind(name).await;
    fixture.scheduled(name).await;
    let pod = serde_json::to_value(fixture.cluster.pod(name).await).unwrap();
    let expected = json!({"requests": {"cpu": "1500m", "memory": "1Gi"}});
    assert_eq!(pod["spec"]["containers"][0]["resources"], expected);
}
