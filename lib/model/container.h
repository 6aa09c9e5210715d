/* SPDX-License-Identifier: Apache-2.0 */
/*
 * An open container file: header and index are read and verified into memory, page data is read by
 * whoever asks. One thread opens and closes; reading is for any thread.
 */
#ifndef DCMEM_CONTAINER_FILE_H
#define DCMEM_CONTAINER_FILE_H

#include "model/index.h"

struct container {
	int fd;			/* owned, O_RDONLY */
	struct container_header header;
	void *index_bytes;	/* owned */
	struct index index;
};

/* Opens by path (regular file, no O_NONBLOCK surprises) and checks header, hashes, whole index. */
int container_open(struct container *container, const char *path);
/* The same on a descriptor, which it takes over on success. `name` is for messages. */
int container_open_fd(struct container *container, int fd, const char *name);
void container_close(struct container *container);
/* Gives up its own copy of the index for one of the same bytes, which must outlive it. */
void container_share_index(struct container *container, const struct index *index);

/* Reads a sidecar blob (safetensors head or verbatim file), verified; free with memory_free(). */
int container_read_blob(const struct container *container, const struct container_file *file,
			void **ret_data);
/* Reads part of a segment: what loading does, straight into place. */
int container_read_segment(const struct container *container, uint32_t segment, uint64_t offset,
			   void *data, uint64_t n_bytes);
/* Stored hash, decode, decoded hash, of one page whose stored bytes are in memory. */
struct codec_context;
int container_decode_page(struct codec_context *codec, const struct container_page *page,
			  const void *stored, void *dst, uint64_t dst_bytes);

#endif
