//! How does Pillow resize?
