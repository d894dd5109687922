//! How the words of [`job`](crate::job) look in the OpenAPI document. Not beside them: the decoder stands alone.

use utoipa::{
    PartialSchema, ToSchema,
    openapi::{
        KnownFormat, Object, RefOr, SchemaFormat,
        schema::{Schema, Type},
    },
};

use super::find::Cursor;
use crate::job::{Epoch, Generation, JobId, JobStatus, TaskStatus};

fn text(format: Option<KnownFormat>, words: &'static str) -> RefOr<Schema> {
    Object::builder()
        .schema_type(Type::String)
        .format(format.map(SchemaFormat::KnownFormat))
        .description(Some(words))
        .into()
}

fn number(words: &'static str) -> RefOr<Schema> {
    Object::builder()
        .schema_type(Type::Integer)
        .format(Some(SchemaFormat::KnownFormat(KnownFormat::Int64)))
        .description(Some(words))
        .into()
}

fn one_of(all: &[&'static str], words: &'static str) -> RefOr<Schema> {
    Object::builder()
        .schema_type(Type::String)
        .enum_values(Some(all.iter().copied()))
        .description(Some(words))
        .into()
}

macro_rules! described {
    ($($word:ty => $schema:expr;)+) => {
        $(impl PartialSchema for $word {
            fn schema() -> RefOr<Schema> {
                $schema
            }
        }
        impl ToSchema for $word {})+
    };
}
described! {
    JobId => text(Some(KnownFormat::Uuid), "Names a job; its publisher chose it.");
    Cursor => text(None, "A place in the list, to go on from.");
    Epoch => number("Grows with each claim of a job, each cancel and each skip.");
    Generation => number("Grows each time a job's message is sent again.");
    JobStatus => one_of(&JobStatus::ALL.iter().map(|status| status.as_str()).collect::<Vec<_>>(), "Where a job is in its life.");
    TaskStatus => one_of(&TaskStatus::ALL.iter().map(|status| status.as_str()).collect::<Vec<_>>(), "Where a task is in its life.");
}
