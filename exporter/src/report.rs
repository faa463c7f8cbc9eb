//! Who is told how far an export is, and who may end it?

/// Listens to an export. All methods have defaults: implement what you need.
pub trait Report {
    /// Writing begins; this many bytes of weights are to come.
    fn start(&mut self, _bytes: u64) {}

    /// The next data file is begun.
    fn file(&mut self, _name: &str) {}

    /// So many more bytes of weights are on their way to the disk.
    fn advance(&mut self, _bytes: u64) {}

    /// Whether the export should stop; it does so within a block of weights and leaves nothing behind.
    fn interrupted(&self) -> bool {
        false
    }
}

/// Tells nobody, never interrupts.
#[derive(Debug, Clone, Copy, Default)]
pub struct Silent;

impl Report for Silent {}
