//! A plain table: aligned columns that fit the terminal, statuses in colour.

use super::{
    failure::Failure,
    output::Output,
    words::{columns, cut, has_colour, painted, width},
};

/// No column but the last takes more columns of the terminal than this.
const WIDEST: usize = 40;
/// Where it is narrow, no column is made narrower than this.
const NARROWEST: usize = 8;
/// Where the last column would have less room than this, it goes below its row.
const ROOM: usize = 24;
const GAP: &str = "  ";
/// What stands before a last column that is below its row.
const BELOW: &str = "    ";

/// Rows under headings. An empty last column costs nothing: no line ends in blanks.
pub(super) struct Table {
    headings: &'static [&'static str],
    rows: Vec<Vec<String>>,
}

impl Table {
    pub(super) fn new(headings: &'static [&'static str]) -> Self {
        Self {
            headings,
            rows: Vec::new(),
        }
    }

    /// Adds a row: one cell a heading, each on one line.
    pub(super) fn row(&mut self, cells: impl IntoIterator<Item = String>) {
        self.rows.push(cells.into_iter().collect());
    }

    /// Prints it, each line behind `indent`.
    pub(super) fn print(&self, output: &mut Output, indent: &str) -> Result<(), Failure> {
        self.lines(columns(), has_colour(), indent)
            .iter()
            .try_for_each(|line| output.line(line))
    }

    fn lines(&self, terminal: Option<usize>, colour: bool, indent: &str) -> Vec<String> {
        let last = self.headings.len().saturating_sub(1);
        let widths = self.widths(
            last,
            terminal.map(|columns| columns - columns.min(indent.len())),
        );
        let taken = indent.len() + widths.iter().map(|width| width + GAP.len()).sum::<usize>();
        // Where nobody's terminal is, nothing is cut: the line may be looked for in a file.
        let room = terminal.map_or(usize::MAX, |columns| columns.saturating_sub(taken));
        let longest = self.rows.iter().filter_map(|row| row.get(last));
        let below = room < ROOM && longest.map(|cell| width(cell)).max() > Some(room);

        let headings: Vec<_> = self.headings.iter().map(ToString::to_string).collect();
        let mut lines = Vec::new();
        for (number, row) in std::iter::once(&headings).chain(&self.rows).enumerate() {
            let mut line = indent.to_owned();
            for (cell, (&columns, heading)) in row.iter().zip(widths.iter().zip(self.headings)) {
                let cell = cut(cell, columns);
                let blanks = columns - width(&cell);
                let is_status = number > 0 && matches!(*heading, "STATUS" | "STATE");
                line.push_str(&painted(&cell, colour && is_status));
                line.extend(std::iter::repeat_n(' ', blanks));
                line.push_str(GAP);
            }
            let rest = row.get(last).map_or("", String::as_str);
            if !below {
                line.push_str(&cut(rest, room));
            }
            lines.push(line.trim_end().to_owned());
            if below && number > 0 && !rest.is_empty() {
                let room = terminal.unwrap_or(usize::MAX);
                let rest = format!("{indent}{BELOW}{rest}");
                lines.push(cut(&rest, room));
            }
        }
        lines
    }

    /// The widths of all columns but the last.
    fn widths(&self, last: usize, room: Option<usize>) -> Vec<usize> {
        let mut widths: Vec<usize> = (0..last)
            .map(|column| {
                let cells = self.rows.iter().filter_map(|row| row.get(column));
                let widest = cells.map(|cell| width(cell)).max().unwrap_or_default();
                let widest = widest.max(width(self.headings[column]));
                if room.is_some() {
                    widest.min(WIDEST)
                } else {
                    widest
                }
            })
            .collect();
        let Some(room) = room else {
            return widths;
        };
        // The widest gives way first; never the first column, which is what people copy.
        loop {
            let taken: usize = widths.iter().map(|width| width + GAP.len()).sum();
            let taken = taken.saturating_sub(GAP.len());
            let widest = widths.iter_mut().skip(1).max();
            match widest {
                Some(widest) if taken > room && *widest > NARROWEST => *widest -= 1,
                _ => return widths,
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn columns_are_aligned_and_the_last_is_cut_to_the_terminal() {
        let mut table = Table::new(&["ID", "KIND", "ERROR"]);
        table.row(["1", "出品", "the disk of the machine is full"].map(String::from));
        table.row(["22", "a", ""].map(String::from));
        let lines = table.lines(Some(36), false, "");
        assert_eq!(
            lines,
            [
                "ID  KIND  ERROR",
                "1   出品  the disk of the machine i…",
                "22  a"
            ]
        );
        let whole = table.lines(None, false, " ");
        assert_eq!(whole[1], " 1   出品  the disk of the machine is full");
    }

    #[test]
    fn where_it_is_narrow_the_last_column_goes_below_and_the_widest_gives_way() {
        let mut table = Table::new(&["ID", "KIND", "STATUS", "ERROR"]);
        let long = "shop.publish.everything.again";
        table.row(["0190b5c2-7e1f", long, "FAILED", "the disk is full"].map(String::from));
        table.row(["0190b5c2-7e20", "a", "SUCCESS", ""].map(String::from));
        let lines = table.lines(Some(40), false, "");
        assert_eq!(
            lines,
            [
                "ID             KIND              STATUS",
                "0190b5c2-7e1f  shop.publish.ev…  FAILED",
                "    the disk is full",
                "0190b5c2-7e20  a                 SUCCESS",
            ]
        );
        assert!(lines.iter().all(|line| width(line) <= 40));
        // In a pipe it stays one line a row.
        assert_eq!(table.lines(None, false, "").len(), 3);
    }

    #[test]
    fn only_statuses_are_in_colour_and_only_where_there_is_any() {
        let mut table = Table::new(&["STATUS", "KIND", "NOTE"]);
        table.row(["FAILED", "FAILED", "FAILED"].map(String::from));
        assert_eq!(
            table.lines(Some(80), true, "")[1],
            "\x1b[31mFAILED\x1b[0m  FAILED  FAILED"
        );
        assert_eq!(
            table.lines(Some(80), false, "")[1],
            "FAILED  FAILED  FAILED"
        );
    }
}
