/* Reads binary PPM and PGM images (P6, P5; 8 bits) into the planes that a network takes. */

#ifndef MDPRUNE_EXAMPLES_IMAGE_H
#define MDPRUNE_EXAMPLES_IMAGE_H

#include <ctype.h>
#include <stdio.h>
#include <stdlib.h>

struct image {
  int width, height, channels; /* 3 or 1 */
  unsigned char* pixels;       /* row by row, channels together; free() it */
};

/* A number of the header; comments run from # to the end of the line. */
static int image_number(FILE* file) {
  int c = fgetc(file);
  long value = 0;
  while (c == '#' || isspace(c)) {
    if (c == '#') {
      while (c != '\n' && c != EOF) c = fgetc(file);
    } else {
      c = fgetc(file);
    }
  }
  if (!isdigit(c)) return -1;
  for (; isdigit(c); c = fgetc(file)) {
    value = value * 10 + (c - '0');
    if (value > 65536) return -1;
  }
  return (int)value; /* and one white-space character is read */
}

/* Returns 0, or -1 if the file cannot be read or is no such image. */
static int image_read(const char* path, struct image* image) {
  FILE* file = fopen(path, "rb");
  int maximum, kind;
  size_t size;
  image->pixels = NULL;
  if (file == NULL) return -1;
  kind = fgetc(file) == 'P' ? fgetc(file) : 0;
  image->channels = kind == '6' ? 3 : 1;
  image->width = image_number(file);
  image->height = image_number(file);
  maximum = image_number(file);
  if ((kind == '5' || kind == '6') && image->width > 0 && image->height > 0 && maximum == 255) {
    size = (size_t)image->width * (size_t)image->height * (size_t)image->channels;
    image->pixels = (unsigned char*)malloc(size);
    if (image->pixels != NULL && fread(image->pixels, 1, size, file) != size) {
      free(image->pixels);
      image->pixels = NULL;
    }
  }
  fclose(file);
  return image->pixels == NULL ? -1 : 0;
}

static float image_at(const struct image* image, int x, int y, int channel) {
  x = x < 0 ? 0 : x >= image->width ? image->width - 1 : x;
  y = y < 0 ? 0 : y >= image->height ? image->height - 1 : y;
  if (image->channels == 1) channel = 0;
  return (float)
      image->pixels[((size_t)y * (size_t)image->width + (size_t)x) * (size_t)image->channels +
                    (size_t)channel];
}

/* Scales to (channels, height, width) by bilinear interpolation between the centres of pixels, and
 * normalises as most image classifiers were trained: (value / 255 - mean) / deviation, with
 * ImageNet's mean and deviation per channel for colour, 0.5 and 0.5 for grey. Grey files become
 * grey colours; of colour files a grey network sees the first channel. A network that was trained
 * otherwise needs its own normalisation here. */
static void image_to_planes(const struct image* image, int channels, int height, int width,
                            float* planes) {
  static const float mean[3] = {0.485F, 0.456F, 0.406F};
  static const float deviation[3] = {0.229F, 0.224F, 0.225F};
  int channel, y, x;
  for (channel = 0; channel < channels; ++channel) {
    const float m = channels == 3 ? mean[channel] : 0.5F;
    const float d = channels == 3 ? deviation[channel] : 0.5F;
    for (y = 0; y < height; ++y) {
      const float from_y = ((float)y + 0.5F) * (float)image->height / (float)height - 0.5F;
      const int y0 = from_y < 0 ? -1 : (int)from_y;
      const float wy = from_y - (float)y0;
      for (x = 0; x < width; ++x) {
        const float from_x = ((float)x + 0.5F) * (float)image->width / (float)width - 0.5F;
        const int x0 = from_x < 0 ? -1 : (int)from_x;
        const float wx = from_x - (float)x0;
        const float top =
            image_at(image, x0, y0, channel) * (1 - wx) + image_at(image, x0 + 1, y0, channel) * wx;
        const float bottom = image_at(image, x0, y0 + 1, channel) * (1 - wx) +
                             image_at(image, x0 + 1, y0 + 1, channel) * wx;
        *planes++ = ((top * (1 - wy) + bottom * wy) / 255.0F - m) / d;
      }
    }
  }
}

#endif
