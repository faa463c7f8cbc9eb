//! Writes what an image decodes to, for programs that compare it with what others make of the file.
//!
//! ```text
//! ls photos/* | cargo run --release --example pixels -- out/
//! ```
//!
//! Standard input has a path a line: of an image, or of a y4m stream, whose first frame counts. `out/NAME.ppm` gets the pixels (P6, 8-bit RGB, upright) of each file,
//! `out/NAME.white.ppm` those on white where something is transparent, standard output a line `PATH<tab>ok` or `PATH<tab>ERROR`.

#![expect(clippy::print_stdout, reason = "the result")]

use runtime::image::frames::Frames;
use runtime::image::{Limits, Picture, open};
use std::error::Error;
use std::ffi::OsStr;
use std::io::Write;
use std::path::Path;

fn decode(path: &Path) -> Result<Picture, Box<dyn Error>> {
    if path.extension().is_none_or(|kind| kind != "y4m") {
        return Ok(open(path, &Limits::default())?);
    }
    let name = path.display().to_string();
    let mut frames = Frames::new(std::fs::File::open(path)?, &name, Limits::default());
    let frame = frames.next().ok_or("expected a frame")??;
    Ok(frame.decode(&Limits::default())?)
}

fn write(picture: &Picture, folder: &Path, name: &OsStr, end: &str) -> std::io::Result<()> {
    let mut name = name.to_owned();
    name.push(end);
    let mut file = std::fs::File::create(folder.join(name))?;
    write!(file, "P6\n{} {}\n255\n", picture.width(), picture.height())?;
    file.write_all(picture.pixels())
}

fn main() -> Result<(), Box<dyn Error>> {
    let folder = std::env::args_os()
        .nth(1)
        .ok_or("expected a folder for the pixels")?;
    for line in std::io::stdin().lines() {
        let line = line?;
        let path = Path::new(&line);
        match decode(path) {
            Err(error) => println!("{line}\t{error}"),
            Ok(picture) => {
                let name = path.file_name().ok_or("expected the path of a file")?;
                write(&picture, Path::new(&folder), name, ".ppm")?;
                let white = picture.on_white();
                if white != picture {
                    write(&white, Path::new(&folder), name, ".white.ppm")?;
                }
                println!("{line}\tok");
            }
        }
    }
    Ok(())
}
