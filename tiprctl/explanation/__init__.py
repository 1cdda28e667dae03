"""What a trained model made of an image and a description: computed here, and drawn as one picture."""
