"""BartBackbone, in Keras."""
