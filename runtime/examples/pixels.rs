//! Writes what an image decodes to, for programs that compare it with what others make of the file.
//!
//! ```text
//! ls photos/* | cargo run --release --example pixels -- out/
//! ```
//!
//! Standard input has a path a line. `out/NAME.ppm` gets the pixels (P6, 8-bit RGB, upright) of each file, standard
//! output a line `PATH<tab>ok` or `PATH<tab>ERROR`.

#![expect(clippy::print_stdout, reason = "the result")]

use runtime::image::{Limits, open};
use std::error::Error;
use std::io::Write;
use std::path::Path;

fn main() -> Result<(), Box<dyn Error>> {
    let folder = std::env::args_os()
        .nth(1)
        .ok_or("expected a folder for the pixels")?;
    for line in std::io::stdin().lines() {
        let line = line?;
        let path = Path::new(&line);
        match open(path, &Limits::default()) {
            Err(error) => println!("{line}\t{error}"),
            Ok(picture) => {
                let mut name = path.file_name().ok_or("expected the path of a file")?.to_owned();
                name.push(".ppm");
                let mut file = std::fs::File::create(Path::new(&folder).join(name))?;
                write!(file, "P6\n{} {}\n255\n", picture.width(), picture.height())?;
                file.write_all(picture.pixels())?;
                println!("{line}\tok");
            }
        }
    }
    Ok(())
}
