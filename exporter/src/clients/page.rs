//! The page of a bundle: `index.html` and `page/`, with which a browser runs the bundle by transformers.js.
//!
//! It is the page of `fvlm-serve` with another answerer, from the same files. transformers.js itself is not among them: the page brings it
//! from a folder `vendor` beside `index.html`, or a pinned version by its hash (`runtime/server/page/worker.js`).

use crate::error::ExportError;
use crate::files;
use models::bundle::FileEntry;
use std::path::Path;

/// Folders of the page in a bundle, each after the one that it is in.
pub(crate) const DIRECTORIES: [&str; 2] = ["page", "page/samples"];

/// What `index.html` says about who answers: a server, and here the bundle.
const ANSWERER: [&str; 2] = [
    r#"<meta name="fvlm-answerer" content="server.js">"#,
    r#"<meta name="fvlm-answerer" content="bundle.js">"#,
];

const INDEX: &str = include_str!("../../../runtime/server/page/index.html");

macro_rules! files {
    ($($folder:literal => $place:literal: $($name:literal),*;)*) => {
        &[$($((
            concat!($place, "/", $name),
            include_bytes!(concat!("../../../", $folder, "/", $name)).as_slice(),
        )),*),*]
    };
}

/// Every other file: its path in the bundle, its contents.
const FILES: &[(&str, &[u8])] = files![
    "runtime/server/page" => "page":
        "app.js", "bundle.js", "chart.js", "history.js", "icon.svg", "prompts.js", "samples.js", "sources.js", "speech.js",
        "style.css", "weights.js", "worker.js";
    "models/demo/scenes" => "page/samples":
        "README.md", "astronaut.jpg", "chelsea.jpg", "coffee.jpg", "scene_1.png", "scene_2.png", "scene_3.png",
        "scene_4.png", "scene_5.png", "scene_6.png", "scene_7.png", "scene_8.png";
];

/// Writes the page into a bundle's directory.
///
/// # Errors
/// A file that cannot be written.
pub(crate) fn write(directory: &Path) -> Result<Vec<FileEntry>, ExportError> {
    for name in DIRECTORIES {
        let path = directory.join(name);
        std::fs::create_dir(&path).map_err(ExportError::io("create", &path))?;
    }
    let index = index();
    let own = [("index.html", index.as_bytes())];
    let all = own.into_iter().chain(FILES.iter().copied());
    all.map(|(name, contents)| files::write(directory, name, contents))
        .collect()
}

fn index() -> String {
    let [server, bundle] = ANSWERER;
    INDEX.replace(server, bundle)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::BTreeSet;

    #[test]
    fn the_page_asks_the_bundle() {
        let [server, bundle] = ANSWERER;
        assert_eq!(INDEX.matches(server).count(), 1);
        let index = index();
        assert_eq!(index.matches(bundle).count(), 1);
        assert!(!index.contains("server.js"));
    }

    /// What a file of the page names beside it: modules, the worker, samples, the style.
    fn named(text: &str) -> BTreeSet<String> {
        let quoted = text.split(['\'', '"', '`']);
        let files = quoted.filter(|word| {
            let name = word
                .strip_prefix("./")
                .or(word.strip_prefix("page/"))
                .unwrap_or(word);
            let plain = |c: char| c.is_ascii_alphanumeric() || matches!(c, '.' | '_' | '/');
            !name.is_empty() && name.chars().all(plain)
        });
        files
            .filter(|word| {
                [".js", ".css", ".svg", ".png", ".jpg", ".md"]
                    .iter()
                    .any(|end| word.ends_with(end))
            })
            .map(str::to_owned)
            .collect()
    }

    #[test]
    fn every_file_that_the_page_names_is_there() {
        let there: BTreeSet<&str> = FILES.iter().map(|(path, _)| *path).collect();
        let mut count = 0;
        let all = FILES.iter().map(|(path, bytes)| (*path, *bytes));
        let index = index();
        for (path, bytes) in all.chain([("index.html", index.as_bytes())]) {
            if !path.ends_with(".js") && !path.ends_with(".html") {
                continue;
            }
            for name in named(std::str::from_utf8(bytes).unwrap()) {
                let file = name.strip_prefix("./").unwrap_or(&name);
                // Brought from elsewhere: worker.js says from where.
                if file == "transformers.min.js" {
                    continue;
                }
                let places = [
                    file.to_owned(),
                    format!("page/{file}"),
                    format!("page/samples/{file}"),
                ];
                assert!(
                    places.iter().any(|place| there.contains(place.as_str())),
                    "{path} names {name}"
                );
                count += 1;
            }
        }
        assert!(count > 20, "{count}");
    }
}
