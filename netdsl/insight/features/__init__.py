"""What a net looks at: filters, feature maps, and pictures that its channels respond to most."""
