//! The API: JSON below `/api/v1`, and the document that describes it, made from the handlers and types themselves.
//!
//! What `GET /api/v1/openapi.json` says is what is done: a test has schemathesis put thousands of requests, right and wrong
//! ones, and compares.

mod acts;
mod asked;
mod events;
mod jobs;
mod whole;

use std::sync::LazyLock;

use axum::{
    Router,
    http::header,
    response::IntoResponse,
    routing::{get, post},
};
use utoipa::{
    Modify, OpenApi,
    openapi::{
        AllOf, Object, RefOr, Schema,
        schema::AnyOf,
        security::{HttpAuthScheme, HttpBuilder, SecurityScheme},
    },
};

use super::{Shared, failure::Wrong};

pub(super) fn routes() -> Router<Shared> {
    Router::new()
        .route("/api/v1/openapi.json", get(document))
        .route("/api/v1/overview", get(whole::overview))
        .route("/api/v1/workers", get(whole::workers))
        .route("/api/v1/queues", get(whole::queues))
        .route("/api/v1/groups", get(whole::groups))
        .route("/api/v1/events", get(events::whole))
        .route("/api/v1/jobs", get(jobs::list))
        .route("/api/v1/jobs/retry", post(acts::retry_many))
        .route("/api/v1/jobs/cancel", post(acts::cancel_many))
        .route("/api/v1/jobs/{id}", get(jobs::one))
        .route("/api/v1/jobs/{id}/events", get(events::job))
        .route("/api/v1/jobs/{id}/retry", post(acts::retry))
        .route("/api/v1/jobs/{id}/cancel", post(acts::cancel))
        .route("/api/v1/jobs/{id}/skip", post(acts::skip))
}

#[derive(OpenApi)]
#[openapi(
    info(
        title = "cliquet",
        description = "What operators ask and do. A job is an ordered list of tasks; the ledger in Postgres says where each stands."
    ),
    paths(
        whole::overview,
        whole::workers,
        whole::queues,
        whole::groups,
        events::whole,
        jobs::list,
        jobs::one,
        events::job,
        acts::retry,
        acts::cancel,
        acts::skip,
        acts::retry_many,
        acts::cancel_many,
    ),
    components(schemas(Wrong)),
    modifiers(&Secured, &Narrowed),
    security(("token" = []))
)]
struct Document;

/// The token, as the document tells it.
struct Secured;

impl Modify for Secured {
    fn modify(&self, document: &mut utoipa::openapi::OpenApi) {
        let token = HttpBuilder::new()
            .scheme(HttpAuthScheme::Bearer)
            .description(Some(
                "CLIQUET_HTTP_TOKEN of the server; nothing is asked for where it has none",
            ))
            .build();
        let components = document.components.get_or_insert_default();
        components.add_security_scheme("token", SecurityScheme::Http(token));
    }
}

/// What no field of an act on many jobs says alone: its filter has a condition, or all are meant.
struct Narrowed;

impl Modify for Narrowed {
    fn modify(&self, document: &mut utoipa::openapi::OpenApi) {
        let schemas = &mut document.components.get_or_insert_default().schemas;
        let Some(many) = schemas.remove("Many") else {
            return;
        };
        let with = |name: &str, schema: Object| {
            Schema::Object(
                Object::builder()
                    .property(name, schema)
                    .required(name)
                    .build(),
            )
        };
        let filter = Object::builder().min_properties(Some(1)).build();
        let all = Object::builder().enum_values(Some([true])).build();
        let either = AnyOf::builder()
            .item(with("filter", filter))
            .item(with("all", all));
        let both = AllOf::builder()
            .item(many)
            .item(Schema::AnyOf(either.build()))
            .build();
        schemas.insert("Many".to_owned(), RefOr::T(Schema::AllOf(both)));
    }
}

async fn document() -> impl IntoResponse {
    static TEXT: LazyLock<String> =
        LazyLock::new(|| Document::openapi().to_json().unwrap_or_default());
    ([(header::CONTENT_TYPE, "application/json")], TEXT.as_str())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_document_names_every_route_of_the_api() {
        let own = include_str!("mod.rs");
        let document = Document::openapi();
        let mut named = 0;
        for line in own.lines() {
            if let Some(path) = line.trim().strip_prefix(".route(\"/api/v1")
                && let Some(path) = path.split('"').next()
                && path != "/openapi.json"
            {
                let path = format!("/api/v1{path}");
                assert!(document.paths.paths.contains_key(&path), "{path}");
                named += 1;
            }
        }
        assert_eq!(named, document.paths.paths.len());
    }
}
