//! The growth curves, drawn from what is kept: ours, the floor of the same rounds, and the peers that there are.

use plotters::coord::combinators::IntoLogRange as _;
use plotters::prelude::*;

use crate::kept::{Kept, Row};

/// One picture: logarithmic on both sides, so that what grows with the number is a slope and what does not lies flat.
struct Plot {
    file: &'static str,
    title: &'static str,
    /// What is counted along the bottom.
    across: &'static str,
    unit: &'static str,
    lines: &'static [Line],
}

struct Line {
    label: &'static str,
    /// A number of objects and the row that was measured at it.
    points: &'static [(f64, &'static str)],
}

const PLOTS: [Plot; 4] = [
    Plot {
        file: "route-add.svg",
        title: "Document put in KV to the first 200 of its host, median",
        across: "hosts there already",
        unit: "ms",
        lines: &[Line {
            label: "portreeve",
            points: &[
                (100.0, "route_add_p50_ms_100"),
                (1e3, "route_add_p50_ms_1k"),
                (1e4, "route_add_p50_ms_10k"),
                (1e5, "route_add_p50_ms_100k"),
            ],
        }],
    },
    Plot {
        file: "translate-one.svg",
        title: "Translating one change",
        across: "routes, ten to a host",
        unit: "us of CPU",
        lines: &[
            Line {
                label: "an edited route",
                points: &[
                    (1e3, "translate_one_us_1k"),
                    (1e4, "translate_one_us_10k"),
                    (1e5, "translate_one_us_100k"),
                ],
            },
            Line {
                label: "an endpoint",
                points: &[
                    (1e3, "translate_one_endpoint_us_1k"),
                    (1e4, "translate_one_endpoint_us_10k"),
                    (1e5, "translate_one_endpoint_us_100k"),
                ],
            },
        ],
    },
    Plot {
        file: "fanout.svg",
        title: "One endpoint change to all streams, CPU for each stream",
        across: "streams x clusters",
        unit: "us of CPU",
        lines: &[
            Line {
                label: "1,000 clusters",
                points: &[
                    (1e5, "fanout_us_per_stream_100"),
                    (1e6, "fanout_us_per_stream_1k"),
                ],
            },
            Line {
                label: "100 streams",
                points: &[
                    (1e5, "fanout_us_per_stream_100"),
                    (1e6, "fanout_us_per_stream_10k"),
                ],
            },
        ],
    },
    Plot {
        file: "memory.svg",
        title: "Memory of the agent",
        across: "routes",
        unit: "MiB resident",
        lines: &[
            Line {
                label: "routes alone, ten to a host",
                points: &[
                    (1e3, "rss_1k_routes_mib"),
                    (1e4, "rss_10k_routes_mib"),
                    (1e5, "rss_100k_mib"),
                ],
            },
            Line {
                label: "each with a service of ten instances",
                points: &[(1e3, "rss_1k_mib"), (1e4, "rss_10k_mib")],
            },
        ],
    },
];

/// What is drawn: a label and its points, in the order of their numbers.
struct Curve {
    label: String,
    kind: Kind,
    points: Vec<(f64, f64)>,
}

#[derive(Clone, Copy, PartialEq)]
enum Kind {
    Ours,
    Floor,
    Peer,
}

const OURS: [RGBColor; 2] = [RGBColor(0, 90, 181), RGBColor(86, 155, 224)];
const FLOOR: RGBColor = RGBColor(150, 150, 150);
const PEERS: [RGBColor; 7] = [
    RGBColor(213, 94, 0),
    RGBColor(0, 140, 100),
    RGBColor(170, 60, 140),
    RGBColor(120, 80, 40),
    RGBColor(200, 160, 0),
    RGBColor(90, 60, 170),
    RGBColor(190, 30, 45),
];
const SIZE: (u32, u32) = (760, 420);
const FONT: &str = "sans-serif";

/// One file each, where there are two points to draw a line between.
pub fn draw(kept: &Kept) {
    for plot in &PLOTS {
        let curves = curves(plot, kept);
        if curves.iter().any(|curve| curve.points.len() > 1) {
            let text = picture(plot, &curves).expect("a picture in memory");
            std::fs::write(kept.folder().join(plot.file), text).expect("target/bench");
        }
    }
}

fn curves(plot: &Plot, kept: &Kept) -> Vec<Curve> {
    let mut curves = Vec::new();
    for line in plot.lines {
        let rows: Vec<(f64, &Row)> = line
            .points
            .iter()
            .filter_map(|(at, name)| Some((*at, kept.row(name)?)))
            .collect();
        let ours = rows.iter().map(|(at, row)| (*at, row.median())).collect();
        curves.push(curve(line.label.to_owned(), Kind::Ours, ours));
        let floors: Vec<_> = rows
            .iter()
            .filter_map(|(at, row)| Some((*at, row.floor()?)))
            .collect();
        if !floors.is_empty()
            && !curves
                .iter()
                .any(|curve| curve.kind == Kind::Floor && curve.points == floors)
        {
            curves.push(curve(
                match plot.lines {
                    [_] => "floor".to_owned(),
                    _ => format!("floor of {}", line.label),
                },
                Kind::Floor,
                floors,
            ));
        }
        for (at, name) in line.points {
            for (peer, row) in kept.peers(name) {
                let point = (*at, row.median());
                let label = match plot.lines {
                    [_] => peer.to_owned(),
                    _ => format!("{peer}, {}", line.label),
                };
                match curves.iter_mut().find(|curve| curve.label == label) {
                    Some(curve) => curve.points.push(point),
                    None => curves.push(curve(label, Kind::Peer, vec![point])),
                }
            }
        }
    }
    curves.retain(|curve| !curve.points.is_empty());
    curves
}

fn curve(label: String, kind: Kind, points: Vec<(f64, f64)>) -> Curve {
    Curve { label, kind, points }
}

fn picture(plot: &Plot, curves: &[Curve]) -> Result<String, DrawingAreaErrorKind<std::io::Error>> {
    let mut text = String::new();
    {
        let area = SVGBackend::with_string(&mut text, SIZE).into_drawing_area();
        area.fill(&WHITE)?;
        let points = || curves.iter().flat_map(|curve| &curve.points);
        let (left, right) = decades(points().map(|(at, _)| *at));
        let (bottom, top) = decades(points().map(|(_, value)| *value * 1.2));
        // Peers lie above and ours below: the legend has a place of its own beside them, as wide as its words.
        let has_peers = curves.iter().any(|curve| curve.kind == Kind::Peer);
        let (place, legend) = match has_peers {
            true => {
                let letters = curves.iter().map(|curve| curve.label.len()).max();
                let share = (50.0 + 7.5 * letters.unwrap_or(0) as f64) / f64::from(SIZE.0 - 110);
                let place = (right / left).powf(share / (1.0 - share));
                (place, SeriesLabelPosition::MiddleRight)
            }
            false => (1.0, SeriesLabelPosition::UpperLeft),
        };
        let mut chart = ChartBuilder::on(&area)
            .caption(plot.title, (FONT, 20))
            .margin(14)
            .margin_right(28)
            .x_label_area_size(46)
            .y_label_area_size(66)
            .build_cartesian_2d(
                (left * 0.8..right * 1.25 * place)
                    .log_scale()
                    .with_key_points(steps(left, right, &[1.0])),
                (bottom..top)
                    .log_scale()
                    .with_key_points(steps(bottom, top, &[1.0, 2.0, 5.0])),
            )?;
        chart
            .configure_mesh()
            .disable_x_mesh()
            .light_line_style(TRANSPARENT)
            .bold_line_style(BLACK.mix(0.08))
            .label_style((FONT, 15))
            .axis_desc_style((FONT, 15))
            .x_desc(plot.across)
            .y_desc(plot.unit)
            .x_label_formatter(&|number| short(*number))
            .y_label_formatter(&|number| short(*number))
            .draw()?;
        let (mut ours, mut peers) = (OURS.iter().cycle(), PEERS.iter().cycle());
        for curve in curves {
            let color = match curve.kind {
                Kind::Ours => ours.next(),
                Kind::Floor => Some(&FLOOR),
                Kind::Peer => peers.next(),
            };
            let width = if curve.kind == Kind::Ours { 3 } else { 2 };
            let style = color.unwrap_or(&FLOOR).stroke_width(width).filled();
            chart
                .draw_series(LineSeries::new(curve.points.iter().copied(), style).point_size(4))?
                .label(&curve.label)
                .legend(move |(x, y)| PathElement::new([(x, y), (x + 18, y)], style));
        }
        chart
            .configure_series_labels()
            .label_font((FONT, 14))
            .background_style(WHITE.mix(0.85))
            .position(legend)
            .draw()?;
        area.present()?;
    }
    Ok(text)
}

/// From the power of ten below all of them to the one above.
fn decades(numbers: impl Iterator<Item = f64>) -> (f64, f64) {
    let (low, high) = numbers.fold((f64::INFINITY, f64::NEG_INFINITY), |(low, high), number| {
        (low.min(number), high.max(number))
    });
    (10f64.powf(low.log10().floor()), 10f64.powf(high.log10().ceil()))
}

fn steps(low: f64, high: f64, within: &[f64]) -> Vec<f64> {
    let decades = low.log10().round() as i32..=high.log10().round() as i32;
    let all = decades.flat_map(|decade| within.iter().map(move |step| step * 10f64.powi(decade)));
    all.filter(|step| *step <= high * 1.01).collect()
}

fn short(number: f64) -> String {
    match number {
        number if number >= 1e6 => format!("{}M", number / 1e6),
        number if number >= 1e3 => format!("{}k", number / 1e3),
        _ => format!("{number}"),
    }
}
