//! What the runs came to: a table, a picture, a log.

use std::fmt::Write as _;
use std::fs::{self, File, OpenOptions, TryLockError};
use std::io::{self, ErrorKind, Seek as _, SeekFrom, Write as _};
use std::path::{Path, PathBuf};
use std::sync::Once;

use anyhow::{Context as _, Result, ensure};
use image::RgbImage;
use plotters::coord::{CoordTranslate, Shift};
use plotters::prelude::*;
use plotters::style::{FontStyle, register_font};

use crate::experiments::compare::run::{Epoch, Method};

/// A mean over seeds and its standard error.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Mean {
    /// The mean.
    pub mean: f64,
    /// The standard deviation of the seeds over √n; none for a single seed.
    pub error: Option<f64>,
}

impl Mean {
    /// Of these numbers.
    #[must_use]
    pub fn of(numbers: &[f64]) -> Self {
        let n = numbers.len() as f64;
        let mean = numbers.iter().sum::<f64>() / n;
        let squares = numbers.iter().map(|x| (x - mean).powi(2)).sum::<f64>();
        Self { mean, error: (numbers.len() > 1).then(|| (squares / (n - 1.0) / n).sqrt()) }
    }

    /// In percent, with its error where there is one.
    #[must_use]
    pub fn percent(self) -> String {
        let mean = 100.0 * self.mean;
        self.error.map_or_else(|| format!("{mean:.1}"), |error| format!("{mean:.1} ± {:.1}", 100.0 * error))
    }
}

/// All epochs of a method: one row for each seed.
fn seeds(log: &[Epoch], method: Method) -> Vec<Vec<&Epoch>> {
    let mut seeds: Vec<Vec<&Epoch>> = Vec::new();
    for epoch in log.iter().filter(|epoch| epoch.method == method) {
        match seeds.iter_mut().find(|seed| seed[0].seed == epoch.seed) {
            Some(seed) => seed.push(epoch),
            None => seeds.push(vec![epoch]),
        }
    }
    seeds
}

/// The mean over seeds of what `value` sees in each epoch.
fn curve(seeds: &[Vec<&Epoch>], value: impl Fn(&Epoch) -> f64) -> Vec<Mean> {
    let epochs = seeds.iter().map(Vec::len).min().unwrap_or(0);
    (0..epochs).map(|i| Mean::of(&seeds.iter().map(|seed| value(seed[i])).collect::<Vec<_>>())).collect()
}

/// The table in Markdown: test errors after the last epoch and after the best one, which nobody knows without the test
/// set.
#[must_use]
pub fn table(log: &[Epoch], methods: &[Method]) -> String {
    let head = ["method", "last epoch", "best epoch", "at epoch", "training error", "s per epoch"].map(str::to_owned);
    let mut rows = vec![head.to_vec()];
    for &method in methods {
        let seeds = seeds(log, method);
        let test = curve(&seeds, |epoch| epoch.test_error);
        let Some((best, lowest)) = test.iter().enumerate().min_by(|a, b| a.1.mean.total_cmp(&b.1.mean)) else {
            continue;
        };
        let train = curve(&seeds, |epoch| epoch.train_error);
        let mut seconds: Vec<f64> = seeds.iter().flatten().map(|epoch| epoch.seconds).collect();
        seconds.sort_by(f64::total_cmp);
        rows.push(vec![
            method.name().to_owned(),
            test[test.len() - 1].percent(),
            lowest.percent(),
            (best + 1).to_string(),
            train[train.len() - 1].percent(),
            format!("{:.2}", seconds[seconds.len() / 2]),
        ]);
    }
    align(&rows)
}

/// A table in Markdown whose columns line up; the first row is its head.
#[must_use]
pub fn align(rows: &[Vec<String>]) -> String {
    let width = |column: usize| rows.iter().map(|row| row[column].chars().count()).max().unwrap_or(0);
    let widths: Vec<usize> = (0..rows[0].len()).map(width).collect();
    let mut text = String::new();
    for (i, row) in rows.iter().enumerate() {
        for (cell, &width) in row.iter().zip(&widths) {
            // Writing to a string does not fail.
            let _ = write!(text, "| {cell:<width$} ");
        }
        text += "|\n";
        if i == 0 {
            for &width in &widths {
                let _ = write!(text, "| {:-<width$} ", "");
            }
            text += "|\n";
        }
    }
    text
}

/// Pixels of a picture, across and down.
pub const SIZE: (u32, u32) = (1200, 750);

/// Draws the learning curves as a PNG: test errors as lines with their standard errors as bands, training errors dashed,
/// with a word on it if their labels are noisy.
///
/// # Errors
/// If the file cannot be written; nothing is left behind then.
pub fn picture(log: &[Epoch], methods: &[Method], title: &str, is_noisy: bool, path: &Path) -> Result<()> {
    png(path, SIZE, |area| draw(area, log, methods, title, is_noisy))
}

/// An area to draw on.
pub type Area<'a> = DrawingArea<BitMapBackend<'a>, Shift>;

/// What drawing comes to.
pub type Drawn = std::result::Result<(), Box<dyn std::error::Error>>;

/// Draws a PNG of this width and height, on an area of twice that: plotters does not smooth its lines.
///
/// # Errors
/// If the file cannot be written; nothing is left behind then.
pub fn png(path: &Path, size: (u32, u32), draw: impl FnOnce(&Area<'_>) -> Drawn) -> Result<()> {
    static FONT: Once = Once::new();
    FONT.call_once(|| {
        // Fails only for bytes that are no font.
        let _ = register_font("sans-serif", FontStyle::Normal, dejavu::sans::regular());
        let _ = register_font("sans-serif", FontStyle::Bold, dejavu::sans::bold());
    });
    let (width, height) = (2 * size.0, 2 * size.1);
    let mut pixels = vec![0; (width * height * 3) as usize];
    let area = BitMapBackend::with_buffer(&mut pixels, (width, height)).into_drawing_area();
    let drawn = area.fill(&PAPER).map_err(Into::into).and_then(|()| draw(&area)).and_then(|()| Ok(area.present()?));
    drawn.map_err(|error| anyhow::anyhow!("cannot draw {}: {error}", path.display()))?;
    drop(area);
    let large = RgbImage::from_raw(width, height, pixels).context("the picture has another size than its buffer")?;
    let small = image::imageops::thumbnail(&large, size.0, size.1);
    let mut png = io::Cursor::new(Vec::new());
    small.write_to(&mut png, image::ImageFormat::Png).with_context(|| format!("cannot encode {}", path.display()))?;
    write_whole(path, png.get_ref())
}

/// The colour of text.
pub const INK: RGBColor = RGBColor(51, 51, 51);
/// The colour behind everything.
pub const PAPER: RGBColor = RGBColor(255, 255, 255);
/// Colours that everybody can tell apart (Okabe and Ito); the first is SAM's, the second SGD's.
pub const COLORS: [RGBColor; 7] = [
    RGBColor(0, 114, 178),
    RGBColor(213, 94, 0),
    RGBColor(0, 158, 115),
    RGBColor(204, 121, 167),
    RGBColor(86, 180, 233),
    RGBColor(230, 159, 0),
    RGBColor(110, 110, 110),
];

fn draw(area: &Area<'_>, log: &[Epoch], methods: &[Method], title: &str, is_noisy: bool) -> Drawn {
    let color = |method| match method {
        Method::Sam => COLORS[0],
        Method::Sgd => COLORS[1],
    };
    let epochs = log.iter().map(|epoch| epoch.epoch).max().unwrap_or(1);
    let highest = log.iter().flat_map(|epoch| [epoch.test_error, epoch.train_error]).fold(0.0, f64::max);
    // Room below 0, so that a line there does not lie on the axis.
    let top = ((100.0 * highest / 10.0).ceil() * 10.0).max(10.0);

    let mut chart = ChartBuilder::on(area)
        .caption(title, ("sans-serif", 52).into_font().color(&INK))
        .margin(48)
        .margin_right(80)
        .x_label_area_size(112)
        .y_label_area_size(144)
        .build_cartesian_2d(0.98..(epochs.max(2) as f64), (-0.03 * top)..top)?;
    chart
        .configure_mesh()
        .disable_x_mesh()
        .light_line_style(TRANSPARENT)
        .bold_line_style(INK.mix(0.12))
        .axis_style(INK.mix(0.5))
        .x_desc("epoch")
        .y_desc("error, %")
        .x_labels(epochs.clamp(2, 12))
        .x_label_formatter(&|x| format!("{x:.0}"))
        .y_label_formatter(&|y| format!("{y:.0}"))
        .label_style(("sans-serif", 36).into_font().color(&INK))
        .draw()?;
    let place = |i: usize| (i + 1) as f64;
    let dash = |from: i32, to: i32, style: ShapeStyle| PathElement::new([(from, 0), (to, 0)], style);
    for &method in methods {
        let seeds = seeds(log, method);
        let test = curve(&seeds, |epoch| 100.0 * epoch.test_error);
        let train = curve(&seeds, |epoch| 100.0 * epoch.train_error);
        let edge = |sign: f64| {
            let edge = test.iter().enumerate();
            edge.map(move |(i, y)| (place(i), (y.mean + sign * y.error.unwrap_or(0.0)).max(0.0)))
        };
        let band: Vec<_> = edge(1.0).chain(edge(-1.0).collect::<Vec<_>>().into_iter().rev()).collect();
        chart.draw_series([Polygon::new(band, color(method).mix(0.18))])?;
        let line = |curve: &[Mean]| curve.iter().enumerate().map(|(i, y)| (place(i), y.mean)).collect::<Vec<_>>();
        let strong = color(method).stroke_width(6);
        chart
            .draw_series(LineSeries::new(line(&test), strong))?
            .label(format!("{}, test", method.name()))
            .legend(move |at| EmptyElement::at(at) + dash(0, 56, strong));
        let dashed = color(method).mix(0.8).stroke_width(4);
        chart
            .draw_series(DashedLineSeries::new(line(&train), 12, 10, dashed))?
            .label(format!("{}, training{}", method.name(), if is_noisy { " (noisy labels)" } else { "" }))
            .legend(move |at| EmptyElement::at(at) + dash(0, 12, dashed) + dash(22, 34, dashed) + dash(44, 56, dashed));
        // A line through one point cannot be seen.
        if epochs == 1 {
            chart.draw_series(line(&test).into_iter().map(|at| Circle::new(at, 12, color(method).filled())))?;
            chart.draw_series(line(&train).into_iter().map(|at| Circle::new(at, 12, dashed)))?;
        }
    }
    legend(&mut chart, SeriesLabelPosition::UpperRight)
}

/// Puts the names of what a chart shows into one of its corners.
///
/// # Errors
/// If it cannot be drawn.
pub fn legend<'a, 'b: 'a, C: CoordTranslate>(
    chart: &mut ChartContext<'a, BitMapBackend<'b>, C>,
    corner: SeriesLabelPosition,
) -> Drawn {
    chart
        .configure_series_labels()
        .position(corner)
        .margin(24)
        .legend_area_size(80)
        .background_style(PAPER.mix(0.85))
        .border_style(INK.mix(0.2))
        .label_font(("sans-serif", 36).into_font().color(&INK))
        .draw()?;
    Ok(())
}

/// Writes a file [atomically and durably](sam_runtime::write_atomically).
///
/// # Errors
/// If it cannot be written; the error names it.
pub fn write_whole(path: &Path, bytes: &[u8]) -> Result<()> {
    sam_runtime::write_atomically(path, bytes).with_context(|| format!("cannot write {}", path.display()))
}

/// A file that grows at its end: a log of one JSON object a line, or records of bytes. What does not fit on the disk is
/// taken back, so that the file never ends in a half.
#[derive(Debug)]
pub struct Log {
    file: File,
    path: PathBuf,
}

impl Log {
    /// Begins a new log, in a folder that is made if need be, and keeps other processes from writing to it.
    ///
    /// # Errors
    /// If the folder or the file cannot be made, or another process writes to the file.
    pub fn create(path: &Path) -> Result<Self> {
        Self::begin(path, |file| match file.try_lock() {
            Err(TryLockError::WouldBlock) => Err(io::Error::new(ErrorKind::WouldBlock, "another process writes to it")),
            // Some file systems have no locks.
            _ => Ok(()),
        })
    }

    /// Begins a log anew.
    ///
    /// # Errors
    /// If the folder or the file cannot be made.
    pub(crate) fn restart(path: &Path) -> Result<Self> {
        Self::begin(path, |_| Ok(()))
    }

    fn begin(path: &Path, before: impl FnOnce(&File) -> io::Result<()>) -> Result<Self> {
        if let Some(folder) = path.parent() {
            fs::create_dir_all(folder).with_context(|| format!("cannot make the folder {}", folder.display()))?;
        }
        let open = || -> io::Result<File> {
            let file = OpenOptions::new().write(true).create(true).truncate(false).open(path)?;
            before(&file)?;
            file.set_len(0)?;
            Ok(file)
        };
        let file = open().with_context(|| format!("cannot write {}", path.display()))?;
        Ok(Self { file, path: path.to_owned() })
    }

    /// Goes on with a log after its first bytes; what follows them is cut off. None if there is no such file.
    ///
    /// # Errors
    /// If the file is shorter, or cannot be written.
    pub(crate) fn resume(path: &Path, after: u64) -> Result<Option<Self>> {
        let mut file = match OpenOptions::new().write(true).open(path) {
            Err(error) if error.kind() == ErrorKind::NotFound => return Ok(None),
            file => file.with_context(|| format!("cannot write {}", path.display()))?,
        };
        let cut = |file: &mut File| -> io::Result<u64> {
            let found = file.metadata()?.len();
            if found >= after {
                file.set_len(after)?;
                file.seek(SeekFrom::End(0))?;
            }
            Ok(found)
        };
        let found = cut(&mut file).with_context(|| format!("cannot write {}", path.display()))?;
        ensure!(
            found >= after,
            "{} has {found} bytes, expected at least the {after} of when the checkpoint was saved: put the whole file \
             back, or remove it to begin it anew",
            path.display()
        );
        Ok(Some(Self { file, path: path.to_owned() }))
    }

    /// Waits until everything is on the disk, and tells how long the file is.
    ///
    /// # Errors
    /// If the disk fails.
    pub fn sync(&mut self) -> Result<u64> {
        let sync = self.file.sync_data().and_then(|()| self.file.stream_position());
        sync.with_context(|| format!("cannot write {}", self.path.display()))
    }

    /// Adds a line.
    ///
    /// # Errors
    /// If it cannot be written.
    pub fn add(&mut self, line: &impl serde::Serialize) -> Result<()> {
        let mut text = serde_json::to_string(line)?;
        text.push('\n');
        self.append(text.as_bytes())
    }

    /// Adds bytes, or ends as before.
    pub(crate) fn append(&mut self, bytes: &[u8]) -> Result<()> {
        let mut write = || -> io::Result<()> {
            let end = self.file.stream_position()?;
            self.file.write_all(bytes).or_else(|error| {
                self.file.set_len(end).and_then(|()| self.file.seek(SeekFrom::Start(end))).and(Err(error))
            })
        };
        write().with_context(|| format!("cannot write {}", self.path.display()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn log() -> Vec<Epoch> {
        let mut log = Vec::new();
        for method in [Method::Sgd, Method::Sam] {
            for seed in 0..3 {
                for epoch in 1..=4 {
                    let test_error = 0.3 - 0.05 * epoch as f64 + 0.01 * seed as f64;
                    let train_error = test_error / 2.0;
                    log.push(Epoch { method, seed, epoch, loss: 1.0, train_error, test_error, seconds: 0.5 });
                }
            }
        }
        log
    }

    #[test]
    fn means_and_standard_errors() {
        assert_eq!(Mean::of(&[0.2]), Mean { mean: 0.2, error: None });
        let Mean { mean, error } = Mean::of(&[1.0, 2.0, 3.0, 4.0]);
        assert_eq!(mean, 2.5);
        assert!((error.unwrap() - (5.0f64 / 3.0 / 4.0).sqrt()).abs() < 1e-15);
    }

    #[test]
    fn the_table_lines_up() {
        let table = table(&log(), &[Method::Sgd, Method::Sam]);
        let widths: Vec<_> = table.lines().map(|line| line.chars().count()).collect();
        assert!(widths.iter().all(|width| *width == widths[0]), "{table}");
        assert!(table.contains("| SAM    | 11.0 ± 0.6 | 11.0 ± 0.6 | 4 "), "{table}");
    }

    #[test]
    fn files_are_whole_or_not_there() {
        let folder = tempfile::tempdir().unwrap();
        let png = folder.path().join("curves.png");
        picture(&log(), &[Method::Sgd, Method::Sam], "a test", true, &png).unwrap();
        assert_eq!(image::image_dimensions(&png).unwrap(), (1200, 750));
        let nowhere = folder.path().join("missing/curves.png");
        let error = picture(&log(), &[Method::Sgd], "a test", true, &nowhere).unwrap_err();
        assert!(format!("{error:#}").contains("missing/curves.png"));
        let mut log = Log::create(&folder.path().join("new/log.jsonl")).unwrap();
        log.add(&[1, 2]).unwrap();
        log.add(&"x").unwrap();
        assert_eq!(fs::read_to_string(folder.path().join("new/log.jsonl")).unwrap(), "[1,2]\n\"x\"\n");
        let error = Log::create(&folder.path().join("new/log.jsonl")).unwrap_err();
        assert!(format!("{error:#}").contains("another process writes to it"), "{error:#}");
        fs::write(folder.path().join("file"), "").unwrap();
        assert!(Log::create(&folder.path().join("file/log.jsonl")).is_err());
    }

    #[test]
    fn a_log_is_cut_or_refused_and_never_filled() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("log.jsonl");
        assert!(Log::resume(&path, 3).unwrap().is_none());
        fs::write(&path, "[1]\n[2]\nhalf").unwrap();
        Log::resume(&path, 8).unwrap().unwrap().add(&[3]).unwrap();
        assert_eq!(fs::read_to_string(&path).unwrap(), "[1]\n[2]\n[3]\n");
        let error = Log::resume(&path, 13).unwrap_err().to_string();
        assert!(error.contains("log.jsonl has 12 bytes, expected at least the 13"), "{error}");
        assert_eq!(fs::read_to_string(&path).unwrap(), "[1]\n[2]\n[3]\n");
    }

    /// Lines at 0 % and a single epoch can be seen: the chart has their colours.
    #[test]
    fn lines_at_0_and_single_epochs_are_drawn() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("curves.png");
        let pixels = |log: &[Epoch]| {
            picture(log, &[Method::Sam], "a test", false, &path).unwrap();
            let picture = image::open(&path).unwrap().to_rgb8();
            let RGBColor(r, g, b) = COLORS[0];
            // Without the legend, in the upper right.
            let is_ours = |(x, y, pixel): &(u32, u32, &image::Rgb<u8>)| (*x < 700 || *y > 400) && pixel.0 == [r, g, b];
            picture.enumerate_pixels().filter(is_ours).count()
        };
        let flat: Vec<_> =
            log().into_iter().map(|epoch| Epoch { test_error: 0.0, train_error: 0.0, ..epoch }).collect();
        assert!(pixels(&flat) > 500, "{}", pixels(&flat));
        let one: Vec<_> = log().into_iter().filter(|epoch| epoch.epoch == 1).collect();
        assert!(pixels(&one) > 50, "{}", pixels(&one));
    }
}
