//! HEIF's items: the images of a file, what they are made of, and where their bytes lie (ISO/IEC 23008-12).

use super::boxes::{Cursor, Part, Parts};
use crate::image::problem::Problem;
use std::borrow::Cow;
use std::collections::BTreeMap;

/// What an auxiliary image says that it is, if that is transparency.
const ALPHA: [&[u8]; 3] = [
    b"urn:mpeg:mpegB:cicp:systems:auxiliary:alpha",
    b"urn:mpeg:hevc:2015:auxid:1",
    b"urn:mpeg:avc:2015:auxid:1",
];

/// Most properties of an item: as many as one entry of `ipma` can name, of which there is one for each item.
const MOST_PROPERTIES: usize = 255;

/// Where an item's bytes lie.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
enum Place {
    #[default]
    File,
    /// In the box `idat`.
    Data,
}

#[derive(Debug, Default)]
struct Location {
    place: Place,
    /// Offset and length; of length 0, it goes on to the end.
    extents: Vec<(u64, u64)>,
}

/// The items of a file.
#[derive(Debug, Default)]
pub(super) struct Items<'a> {
    file: &'a [u8],
    /// What the box `idat` has.
    data: &'a [u8],
    primary: Option<u32>,
    kinds: BTreeMap<u32, [u8; 4]>,
    locations: BTreeMap<u32, Location>,
    boxes: Vec<Part<'a>>,
    /// Of an item, places in `boxes`.
    properties: BTreeMap<u32, Vec<usize>>,
    made_of: BTreeMap<u32, Vec<u32>>,
    /// Of an item, those that are auxiliary to it.
    auxiliary: BTreeMap<u32, Vec<u32>>,
}

impl<'a> Items<'a> {
    /// The items that the box `meta` of a file lists; `None` where it has none.
    pub(super) fn read(file: &'a [u8]) -> Result<Option<Items<'a>>, Problem> {
        // What follows may be a camera's own; that the image's bytes are there is seen where they are looked for.
        let mut found = None;
        for part in Parts::of_file(file) {
            let part = part?;
            if part.kind == *b"meta" {
                found = Some(part);
                break;
            }
        }
        let Some(meta) = found else {
            return Ok(None);
        };
        let mut items = Items {
            file,
            ..Items::default()
        };
        let mut body = meta.cursor();
        body.version()?;
        for part in Parts::inside(body) {
            let part = part?;
            match &part.kind {
                b"pitm" => items.primary = Some(primary(part.cursor())?),
                b"iinf" => items.list(part.cursor())?,
                b"iloc" => items.locate(part.cursor())?,
                b"iref" => items.refer(part.cursor())?,
                b"iprp" => items.describe(part.cursor())?,
                b"idat" => items.data = part.body,
                _ => {}
            }
        }
        Ok(Some(items))
    }

    /// Bytes of the file.
    pub(super) fn file_bytes(&self) -> usize {
        self.file.len()
    }

    /// The image that the file is for.
    pub(super) fn primary(&self) -> Result<u32, Problem> {
        match self.primary {
            Some(id) => Ok(id),
            None => Problem::damaged("it does not say which of its images is shown"),
        }
    }

    pub(super) fn kind(&self, id: u32) -> Result<[u8; 4], Problem> {
        match self.kinds.get(&id) {
            Some(kind) => Ok(*kind),
            None => Problem::damaged(format!("item {id}, which it refers to, is not in it")),
        }
    }

    /// Images that an image is put together from, in order.
    pub(super) fn made_of(&self, id: u32) -> &[u32] {
        self.made_of.get(&id).map_or(&[], Vec::as_slice)
    }

    /// The images with the transparency of an image.
    pub(super) fn alpha_of(&self, id: u32) -> impl Iterator<Item = u32> {
        let auxiliary = self.auxiliary.get(&id).map_or(&[][..], Vec::as_slice);
        auxiliary.iter().copied().filter(|&id| {
            // Version and flags, then a text that ends with a zero.
            let name = self.property(id, *b"auxC").and_then(|part| part.body.get(4..));
            name.and_then(|name| name.split(|&byte| byte == 0).next())
                .is_some_and(|name| ALPHA.contains(&name))
        })
    }

    /// The first property of a kind that an item has.
    pub(super) fn property(&self, id: u32, kind: [u8; 4]) -> Option<Part<'a>> {
        let places = self.properties.get(&id)?;
        let mut parts = places.iter().filter_map(|&place| self.boxes.get(place));
        parts.find(|part| part.kind == kind).copied()
    }

    /// The bytes of an item.
    pub(super) fn bytes(&self, id: u32) -> Result<Cow<'a, [u8]>, Problem> {
        let Some(location) = self.locations.get(&id) else {
            return Problem::damaged(format!("it does not say where item {id} lies"));
        };
        let whole = match location.place {
            Place::File => self.file,
            Place::Data => self.data,
        };
        let mut all = Cow::Borrowed(&[][..]);
        for &(offset, length) in &location.extents {
            let short = || match location.place {
                Place::File => Problem::Truncated,
                Place::Data => Problem::Damaged(format!("item {id} is longer than `idat`, which it lies in")),
            };
            let index = |number: u64| usize::try_from(number).unwrap_or(usize::MAX);
            let from = whole.get(index(offset)..).ok_or_else(short)?;
            let length = if length == 0 { from.len() } else { index(length) };
            let extent = from.get(..length).ok_or_else(short)?;
            if all.is_empty() {
                all = Cow::Borrowed(extent);
            } else if all.len().saturating_add(extent.len()) > self.file.len() {
                return Problem::damaged(format!("item {id} is longer than the file"));
            } else {
                all.to_mut().extend_from_slice(extent);
            }
        }
        Ok(all)
    }

    /// `iinf`: which items there are.
    fn list(&mut self, mut body: Cursor<'a>) -> Result<(), Problem> {
        let (version, _) = body.version()?;
        body.take(if version == 0 { 2 } else { 4 })?;
        for part in Parts::inside(body) {
            let part = part?;
            let mut entry = part.cursor();
            let (version, _) = entry.version()?;
            let id = match version {
                2 => entry.u16()?.into(),
                3 => entry.u32()?,
                // The old kinds have no type: they are no images.
                _ => continue,
            };
            entry.take(2)?;
            let kind = entry.letters()?;
            self.kinds.insert(id, kind);
        }
        Ok(())
    }

    /// `iloc`: where they lie.
    fn locate(&mut self, mut body: Cursor<'a>) -> Result<(), Problem> {
        let (version, _) = body.version()?;
        if version > 2 {
            return Problem::unsupported(format!("a HEIF file with an `iloc` of version {version}"));
        }
        let (sizes, more) = (body.u8()?, body.u8()?);
        let [offset, length, base] = [sizes >> 4, sizes & 15, more >> 4].map(usize::from);
        let index = if version == 0 { 0 } else { usize::from(more & 15) };
        if [offset, length, base, index].iter().any(|&size| size > 8) {
            return Problem::damaged("`iloc` has numbers of more than 8 bytes");
        }
        let id = |body: &mut Cursor<'a>| body.number(if version < 2 { 2 } else { 4 });
        for _ in 0..id(&mut body)? {
            let item = u32::try_from(id(&mut body)?).unwrap_or(u32::MAX);
            let method = if version == 0 { 0 } else { body.u16()? & 15 };
            let other_file = body.u16()?;
            let start = body.number(base)?;
            let mut location = Location {
                place: if method == 1 { Place::Data } else { Place::File },
                ..Location::default()
            };
            let extents = body.u16()?;
            if extents > 1 && index + offset + length == 0 {
                return Problem::damaged(format!(
                    "`iloc` has {extents} extents of item {item} that take no byte"
                ));
            }
            for _ in 0..extents {
                body.number(index)?;
                let from = start.saturating_add(body.number(offset)?);
                location.extents.push((from, body.number(length)?));
            }
            // Not to be found here: whoever needs it is told so.
            if method < 2 && other_file == 0 {
                self.locations.insert(item, location);
            }
        }
        Ok(())
    }

    /// `iref`: what belongs to what.
    fn refer(&mut self, mut body: Cursor<'a>) -> Result<(), Problem> {
        let (version, _) = body.version()?;
        let size = if version == 0 { 2 } else { 4 };
        let id =
            |body: &mut Cursor<'a>| Ok::<u32, Problem>(u32::try_from(body.number(size)?).unwrap_or(u32::MAX));
        for part in Parts::inside(body) {
            let part = part?;
            let mut entry = part.cursor();
            let from = id(&mut entry)?;
            for _ in 0..entry.u16()? {
                let to = id(&mut entry)?;
                match &part.kind {
                    b"dimg" => self.made_of.entry(from).or_default().push(to),
                    b"auxl" => self.auxiliary.entry(to).or_default().push(from),
                    _ => {}
                }
            }
        }
        Ok(())
    }

    /// `iprp`: properties, and which item has which.
    fn describe(&mut self, body: Cursor<'a>) -> Result<(), Problem> {
        for part in Parts::inside(body) {
            let part = part?;
            match &part.kind {
                b"ipco" => {
                    for property in Parts::inside(part.cursor()) {
                        self.boxes.push(property?);
                    }
                }
                b"ipma" => self.associate(part.cursor())?,
                _ => {}
            }
        }
        Ok(())
    }

    pub(super) fn associate(&mut self, mut body: Cursor<'a>) -> Result<(), Problem> {
        let (version, flags) = body.version()?;
        for _ in 0..body.u32()? {
            let id = match version {
                0 => body.u16()?.into(),
                _ => body.u32()?,
            };
            let places = self.properties.entry(id).or_default();
            for _ in 0..body.u8()? {
                let place = match flags & 1 {
                    0 => usize::from(body.u8()? & 0x7f),
                    _ => usize::from(body.u16()? & 0x7fff),
                };
                // They are counted from 1; 0 is none.
                places.extend(place.checked_sub(1));
            }
            if places.len() > MOST_PROPERTIES {
                return Problem::damaged(format!("item {id} has more than {MOST_PROPERTIES} properties"));
            }
        }
        Ok(())
    }
}

/// `pitm`: which item is shown.
fn primary(mut body: Cursor<'_>) -> Result<u32, Problem> {
    match body.version()? {
        (0, _) => Ok(body.u16()?.into()),
        _ => body.u32(),
    }
}
