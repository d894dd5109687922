//! A plain table: aligned columns, the last one cut to the terminal.

use super::{
    failure::Failure,
    output::Output,
    words::{columns, cut, width},
};

/// No column but the last takes more columns of the terminal than this.
const WIDEST: usize = 40;
const GAP: &str = "  ";

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
        self.lines(columns(), indent)
            .try_for_each(|line| output.line(line))
    }

    fn lines(&self, terminal: Option<usize>, indent: &str) -> impl Iterator<Item = String> {
        let headings: Vec<_> = self.headings.iter().map(|text| text.to_string()).collect();
        let last = self.headings.len().saturating_sub(1);
        // Where nobody's terminal is, nothing is cut: the line may be looked for in a file.
        let widest = if terminal.is_some() {
            WIDEST
        } else {
            usize::MAX
        };
        let widths: Vec<usize> = (0..last)
            .map(|column| {
                let cells = self.rows.iter().filter_map(|row| row.get(column));
                let cells = cells.map(|cell| width(cell));
                cells
                    .chain([width(self.headings[column])])
                    .max()
                    .unwrap_or(0)
                    .min(widest)
            })
            .collect();
        let rows = std::iter::once(headings).chain(self.rows.iter().cloned());
        rows.map(move |row| {
            let mut line = indent.to_owned();
            for (column, cell) in row.iter().enumerate() {
                match widths.get(column) {
                    Some(&columns) => {
                        let cell = cut(cell, columns);
                        line.push_str(&cell);
                        line.extend(std::iter::repeat_n(' ', columns - width(&cell)));
                        line.push_str(GAP);
                    }
                    None => line.push_str(cell),
                }
            }
            let line = line.trim_end();
            terminal.map_or_else(|| line.to_owned(), |columns| cut(line, columns))
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn columns_are_aligned_and_the_last_is_cut_to_the_terminal() {
        let mut table = Table::new(&["ID", "KIND", "ERROR"]);
        table.row(["1", "出品", "the disk is full"].map(String::from));
        table.row(["22", "a", ""].map(String::from));
        let lines: Vec<_> = table.lines(Some(16), "").collect();
        assert_eq!(lines, ["ID  KIND  ERROR", "1   出品  the d…", "22  a"]);
        let whole: Vec<_> = table.lines(None, " ").collect();
        assert_eq!(whole[1], " 1   出品  the disk is full");
    }
}
