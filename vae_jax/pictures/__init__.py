"""Pictures: sheets of images, curves and maps, and a sweep's pictures."""
