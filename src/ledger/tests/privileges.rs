//! What each duty needs is written twice: in `deploy/postgres-roles.sql`, and where rights are looked for. One is the other's test.

use super::*;
use crate::ledger::{Duty, Health};

const ROLES: &str = include_str!("../../../deploy/postgres-roles.sql");

/// Every right that a role has in the schema, as the statement that takes it away.
const GRANTED: &str = "
SELECT format('REVOKE %s ON %s FROM %s', privilege_type, what, $1)
  FROM (SELECT 'SCHEMA cliquet' AS what, nspacl AS acl FROM pg_namespace WHERE nspname = 'cliquet'
        UNION ALL
        SELECT oid::regclass::text, relacl FROM pg_class WHERE relnamespace = 'cliquet'::regnamespace
        UNION ALL
        SELECT 'FUNCTION ' || oid::regprocedure, proacl FROM pg_proc WHERE pronamespace = 'cliquet'::regnamespace) AS objects,
       aclexplode(acl) WHERE grantee = $1::regrole
UNION ALL
SELECT format('REVOKE %s (%s) ON %s FROM %s', privilege_type, attname, attrelid::regclass, $1)
  FROM pg_attribute JOIN pg_class class ON class.oid = attrelid, aclexplode(attacl)
 WHERE relnamespace = 'cliquet'::regnamespace AND grantee = $1::regrole
 ORDER BY 1";

#[tokio::test]
async fn every_right_that_a_role_is_given_is_missed_when_it_is_taken_away() {
    let database = Database::new().await;
    let mut admin = database.connect().await;
    // Roles are the whole server's, and others make them at this moment.
    while let Err(error) = sqlx::raw_sql(ROLES).execute(&mut admin).await {
        println!("again: {error}");
        sqlx::raw_sql("ROLLBACK").execute(&mut admin).await.unwrap();
        tokio::time::sleep(std::time::Duration::from_millis(50)).await;
    }
    for (duty, role, least) in [
        (Duty::Worker, "cliquet_worker", 30),
        (Duty::Publisher, "cliquet_publisher", 20),
        (Duty::Reader, "cliquet_reader", 8),
        (Duty::Operator, "cliquet_operator", 25),
    ] {
        let mut url = url::Url::parse(&database.url).unwrap();
        url.query_pairs_mut()
            .append_pair("options", &format!("-c role={role}"));
        let address = LedgerAddress::parse(url.as_str()).unwrap();
        let mut health = Health::open(&address).await.unwrap();
        assert_eq!(health.server().await.unwrap().role, role);
        assert_eq!(health.lacking(duty, role).await.unwrap(), []);

        let granted: Vec<String> = sqlx::query_scalar(GRANTED)
            .bind(role)
            .fetch_all(&mut admin)
            .await
            .unwrap();
        assert!(granted.len() >= least, "{role}: {granted:?}");
        for revoke in granted {
            sqlx::raw_sql(AssertSqlSafe(revoke.clone()))
                .execute(&mut admin)
                .await
                .unwrap();
            let lacking = health.lacking(duty, role).await.unwrap();
            assert!(!lacking.is_empty(), "nobody misses it: {revoke}");
            for lack in lacking {
                sqlx::raw_sql(AssertSqlSafe(lack.grant))
                    .execute(&mut admin)
                    .await
                    .unwrap();
            }
            assert_eq!(health.lacking(duty, role).await.unwrap(), [], "{revoke}");
        }
    }
}
