//! How is a table written? Rows of cells, the first of titles; aligned for a terminal, or in Markdown.

/// Columns aligned to the left, two spaces apart.
pub fn plain<Row: AsRef<[String]>>(rows: &[Row]) -> String {
    let columns = rows.iter().map(|row| row.as_ref().len()).max().unwrap_or(0);
    let width = |column: usize| {
        let cells = rows.iter().filter_map(|row| row.as_ref().get(column));
        cells.map(|cell| cell.chars().count()).max().unwrap_or(0)
    };
    let widths: Vec<usize> = (0..columns).map(width).collect();
    let mut text = String::new();
    for row in rows {
        let cells: Vec<String> = row
            .as_ref()
            .iter()
            .zip(&widths)
            .map(|(cell, &width)| format!("{cell:<width$}"))
            .collect();
        text.push_str(cells.join("  ").trim_end());
        text.push('\n');
    }
    text
}

/// The same in Markdown.
pub fn markdown<Row: AsRef<[String]>>(rows: &[Row]) -> String {
    let mut text = String::new();
    for (number, row) in rows.iter().map(AsRef::as_ref).enumerate() {
        let cells: Vec<String> = row.iter().map(|cell| cell.replace('|', "\\|")).collect();
        text.push_str(&format!("| {} |\n", cells.join(" | ")));
        if number == 0 {
            text.push_str(&format!("|{}\n", "---|".repeat(row.len())));
        }
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn cells_with_a_bar() {
        let text = markdown(&[["title".to_owned()], ["a|b".to_owned()]]);
        assert!(text.contains(r"| a\|b |"), "{text}");
    }
}
