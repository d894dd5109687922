//! `cliquet publish` under a user's rights.

use uuid::Uuid;

use crate::support::{
    Queues,
    binary::Binary,
    privileges::{broker_as, permissions},
    stage::body,
};
use cliquet::broker::Place;

/// The address of a user who may do nothing but what `permissions` say.
async fn as_user(queues: &Queues, user: &str, permissions: &str) -> String {
    let url = broker_as(&queues.amqp_url, user, permissions).await;
    url.expect("this test needs the broker's management API: set RABBITMQ_MANAGEMENT_URL")
}

#[tokio::test(flavor = "multi_thread")]
async fn publishing_without_the_right_to_write_fails_at_once_and_names_the_right() {
    let queues = Queues::new().await;
    queues.declare().await;
    let mut binary = Binary::with(&queues, "");
    let nothing = permissions(&["--json", "reader", "eve"]);
    binary.set(
        "AMQP_URL",
        &as_user(&queues, "cliquet_test_reader", &nothing).await,
    );
    binary.set("CLIQUET_DECLARE", "false");
    let ids = [Uuid::now_v7(), Uuid::now_v7(), Uuid::now_v7()];
    let lines: String = ids
        .map(|id| String::from_utf8(body(id, "a")).unwrap() + "\n")
        .concat();
    let begun = std::time::Instant::now();
    let ended = binary.feed(&["publish", "-"], lines.as_bytes()).await;
    println!("refused after {:?}", begun.elapsed());
    assert_eq!(ended.out, "");
    let told = ended.failed(1);
    for words in [
        "does not permit publishing",
        "ACCESS_REFUSED",
        "write",
        "amq.default",
        "deploy/rabbitmq-permissions.sh",
        "rabbitmqctl set_permissions",
        "0 of 3 messages are confirmed",
    ] {
        assert!(told.contains(words), "{told}\ndoes not say {words:?}");
    }
    assert_eq!(
        told.matches("does not permit").count(),
        1,
        "it is told once: {told}"
    );
    assert_eq!(queues.depth(Place::Work).await, 0);

    // What the script gives a publisher is enough for it.
    let queue = queues.name(Place::Work);
    let publisher = permissions(&["--json", "--queue", &queue, "publisher", "bob"]);
    binary.set(
        "AMQP_URL",
        &as_user(&queues, "cliquet_test_publisher", &publisher).await,
    );
    binary
        .feed(&["publish", "-"], lines.as_bytes())
        .await
        .done();
    assert_eq!(queues.depth(Place::Work).await, 3);

    // With declaring left on it may not make the queues, finds them, and goes on.
    binary.set("CLIQUET_DECLARE", "true");
    binary
        .feed(&["publish", "-"], lines.as_bytes())
        .await
        .done();
    assert_eq!(queues.depth(Place::Work).await, 6);
}
