//! Least privilege: workers of these tests run under exactly what `deploy/postgres-roles.sql` and
//! `deploy/rabbitmq-permissions.sh` give a worker, while the tests themselves look on as the owners.

use std::{path::PathBuf, process::Command, time::Duration};

use sqlx::{AssertSqlSafe, Connection, PgConnection};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
    time::sleep,
};

pub fn deploy(name: &str) -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR"))
        .join("deploy")
        .join(name)
}

/// Gives a database its roles, and answers with its address for a user who is a member of `role` (`cliquet_worker` …).
pub async fn database_as(database: &str, role: &str) -> String {
    let roles = std::fs::read_to_string(deploy("postgres-roles.sql")).unwrap();
    let user = role.replace("cliquet_", "cliquet_test_");
    // The tables of tests are theirs to grant: handlers write to them within their transactions.
    let statements = format!(
        "{roles}
         DO $$ BEGIN
             IF NOT EXISTS (SELECT FROM pg_roles WHERE rolname = '{user}') THEN
                 CREATE ROLE {user} LOGIN PASSWORD 'least' IN ROLE {role};
             END IF;
         END $$;
         ALTER DEFAULT PRIVILEGES IN SCHEMA public GRANT ALL ON TABLES TO cliquet_worker;
         ALTER DEFAULT PRIVILEGES IN SCHEMA public GRANT ALL ON SEQUENCES TO cliquet_worker;"
    );
    let mut owner = PgConnection::connect(database).await.unwrap();
    let mut failures = 0;
    // Roles belong to the whole server, and other tests make them at this moment.
    while let Err(error) = sqlx::raw_sql(AssertSqlSafe(statements.clone()))
        .execute(&mut owner)
        .await
    {
        failures += 1;
        assert!(failures < 20, "deploy/postgres-roles.sql: {error}");
        // It has a transaction of its own.
        sqlx::raw_sql("ROLLBACK").execute(&mut owner).await.unwrap();
        sleep(Duration::from_millis(50)).await;
    }
    let mut url = url::Url::parse(database).unwrap();
    url.set_username(&user).unwrap();
    url.set_password(Some("least")).unwrap();
    url.into()
}

/// What `deploy/rabbitmq-permissions.sh` prints.
pub fn permissions(arguments: &[&str]) -> String {
    let output = Command::new(deploy("rabbitmq-permissions.sh"))
        .args(arguments)
        .output()
        .unwrap();
    assert!(output.status.success(), "{output:?}");
    String::from_utf8(output.stdout).unwrap()
}

/// Makes a user of the tests' broker with these permissions, over its management API. Answers with its AMQP address, or
/// with nothing when there is no such API: then the caller goes on as the owner.
pub async fn broker_as(amqp_url: &str, user: &str, permissions: &str) -> Option<String> {
    let mut amqp = url::Url::parse(amqp_url).unwrap();
    let main = std::env::var("AMQP_URL").is_ok_and(|main| main == amqp_url);
    let management = match (main, std::env::var("RABBITMQ_MANAGEMENT_URL")) {
        (true, Ok(management)) => url::Url::parse(&management).unwrap(),
        // deploy/dev gives a broker's API the port next to its own.
        _ => {
            let mut next = amqp.clone();
            next.set_port(Some(amqp.port()? + 1)).unwrap();
            next
        }
    };
    let place = (management.host_str()?.to_owned(), management.port()?);
    let (password, account) = (
        r#"{"password": "least", "tags": ""}"#,
        format!("/api/users/{user}"),
    );
    let mut refusals = 0;
    loop {
        let made = put(&place, &account, password).await?;
        let allowed = put(&place, &format!("/api/permissions/%2F/{user}"), permissions).await?;
        if let (201 | 204, 201 | 204) = (made, allowed) {
            break;
        }
        // Another test makes the same user at the same moment: it has none yet, and then has it already.
        refusals += 1;
        assert!(
            refusals < 20,
            "the broker answers {made} and {allowed}, again and again"
        );
        sleep(Duration::from_millis(50)).await;
    }
    amqp.set_username(user).unwrap();
    amqp.set_password(Some("least")).unwrap();
    Some(amqp.into())
}

/// As the tests' brokers know their owner: guest, with guest's password.
async fn put(place: &(String, u16), path: &str, body: &str) -> Option<u16> {
    let mut stream = TcpStream::connect(place).await.ok()?;
    let request = format!(
        "PUT {path} HTTP/1.0\r\nAuthorization: Basic Z3Vlc3Q6Z3Vlc3Q=\r\nContent-Type: application/json\r\nContent-Length: {}\r\n\r\n{body}",
        body.len()
    );
    stream.write_all(request.as_bytes()).await.ok()?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer).await.ok()?;
    answer.split(' ').nth(1)?.parse().ok()
}
