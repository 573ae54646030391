"""Pictures: sheets of images, curves and maps, a sweep at a glance."""
