//! `cliquet migrate`: the tables, brought up to date.

use std::process::ExitCode;

use super::{Desk, failure::Failure, output::note, table::Table};
use crate::ledger::migrate;

pub(super) async fn run(mut desk: Desk) -> Result<ExitCode, Failure> {
    let address = desk.database()?;
    let migrations = migrate(&address).await?;
    if desk.json {
        for migration in &migrations {
            desk.output.json(migration)?;
        }
        return Ok(ExitCode::SUCCESS);
    }
    let mut table = Table::new(&["VERSION", "STATE", "WHAT"]);
    for migration in &migrations {
        let state = if migration.applied_now {
            "applied now"
        } else {
            "was there"
        };
        table.row([
            migration.version.to_string(),
            state.to_owned(),
            migration.description.to_owned(),
        ]);
    }
    table.print(&mut desk.output, "")?;
    note(format_args!("{address} is up to date"));
    Ok(ExitCode::SUCCESS)
}
