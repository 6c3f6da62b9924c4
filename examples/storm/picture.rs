//! The picture of a storm, as SVG.

use std::{fmt::Write, time::Duration};

use crate::hops::{Report, Row};

const WIDTH: f64 = 860.0;
const LEFT: f64 = 60.0;
const PANEL: f64 = 130.0;
const HEIGHT: f64 = 80.0;
const TOP: f64 = 60.0;

/// One panel for each mode, over time: calls a second, failures, calls to the leaf, and when its breaker was not closed.
pub(crate) fn draw(reports: &[Report], step: Duration) -> String {
    let height = TOP + PANEL * reports.len() as f64;
    let mut svg = format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {} {height}\" font-family=\"sans-serif\" font-size=\"12\">\n\
         <rect width=\"100%\" height=\"100%\" fill=\"#fff\"/>\n",
        WIDTH + LEFT + 20.0
    );
    for (place, (color, text)) in [
        ("#888", "calls/s"),
        ("#06c", "to the leaf that fails"),
        ("#c00", "failed calls/s"),
        ("#fb3", "its breaker is not closed"),
    ]
    .into_iter()
    .enumerate()
    {
        let x = LEFT + 200.0 * place as f64;
        let _ = writeln!(svg, "<rect x=\"{x}\" y=\"12\" width=\"14\" height=\"10\" fill=\"{color}\"/>");
        let _ = writeln!(svg, "<text x=\"{}\" y=\"21\">{text}</text>", x + 20.0);
    }
    for (place, report) in reports.iter().enumerate() {
        panel(&mut svg, report, step, TOP + PANEL * place as f64);
    }
    svg.push_str("</svg>\n");
    svg
}

fn panel(svg: &mut String, report: &Report, step: Duration, top: f64) {
    let (bottom, rows) = (top + HEIGHT, &report.rows);
    let each = WIDTH / rows.len().max(1) as f64;
    let rate = |count: u64| count as f64 / step.as_secs_f64();
    let most = rows.iter().map(|row| rate(row.calls.max(row.sent))).fold(1.0, f64::max);
    let x = |time: Duration| LEFT + each * time.as_secs_f64() / step.as_secs_f64();
    let (from, to) = (x(report.fails_at), x(report.heals_at));
    let _ = writeln!(
        svg,
        "<rect x=\"{from:.1}\" y=\"{top}\" width=\"{:.1}\" height=\"{HEIGHT}\" fill=\"#f3f3f3\"/>",
        to - from
    );
    for (place, _) in rows.iter().enumerate().filter(|(_, row)| row.is_open) {
        let at = LEFT + each * place as f64;
        let _ = writeln!(
            svg,
            "<rect x=\"{at:.1}\" y=\"{bottom}\" width=\"{:.1}\" height=\"6\" fill=\"#fb3\"/>",
            each + 0.1
        );
    }
    for (color, value) in
        [("#888", (|row| row.calls) as fn(&Row) -> u64), ("#06c", |row| row.sent), ("#c00", |row| row.failed)]
    {
        let points: Vec<_> = rows
            .iter()
            .enumerate()
            .map(|(place, row)| {
                let y = bottom - HEIGHT * rate(value(row)) / most;
                format!("{:.1},{y:.1}", LEFT + each * (place as f64 + 0.5))
            })
            .collect();
        let points = points.join(" ");
        let _ = writeln!(
            svg,
            "<polyline points=\"{points}\" fill=\"none\" stroke=\"{color}\" stroke-width=\"1.3\"/>"
        );
    }
    let _ = writeln!(
        svg,
        "<text x=\"{LEFT}\" y=\"{}\" font-weight=\"bold\">{}</text>",
        top - 5.0,
        report.mode.name()
    );
    let _ =
        writeln!(svg, "<text x=\"{}\" y=\"{}\" text-anchor=\"end\">{most:.0}</text>", LEFT - 6.0, top + 10.0);
    let _ = writeln!(svg, "<text x=\"{}\" y=\"{bottom}\" text-anchor=\"end\">0</text>", LEFT - 6.0);
    let seconds = [(from, report.fails_at), (to, report.heals_at)];
    for (at, time) in seconds {
        let _ = writeln!(
            svg,
            "<text x=\"{at:.1}\" y=\"{}\" text-anchor=\"middle\">{} s</text>",
            bottom + 20.0,
            time.as_secs()
        );
    }
}
