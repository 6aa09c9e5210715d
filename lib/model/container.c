/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Opening container files. Owns the descriptor and the copy of the index; refuses anything but a
 * regular file whose header, hashes and tables are right. Files are read, never mapped: another
 * process may truncate them at any time.
 */
#include "model/container.h"

#include <errno.h>
#include <fcntl.h>
#include <string.h>
#include <sys/stat.h>

#include "base/cleanup.h"
#include "base/hash.h"
#include "base/io.h"
#include "base/memory.h"
#include "base/message.h"
#include "base/range.h"
#include "codec/codec.h"

#define INDEX_MAX_BYTES (1ULL << 32) /* 10^7 tensors and a petabyte of pages fit; untuned */

static int read_at(int fd, void *data, uint64_t n_bytes, uint64_t offset, const char *what)
{
	int r = io_read_at(fd, data, n_bytes, offset);

	if (r == -ENODATA)
		return message_set(INDEX_E_CORRUPT,
				   "%s at byte %llu: the file ends early, it is truncated", what,
				   (unsigned long long)offset);
	if (r)
		return message_set(r, "%s at byte %llu: %s", what, (unsigned long long)offset,
				   strerror(-r));
	return 0;
}

static int check_header(const struct container_header *header, uint64_t file_bytes)
{
	if (memcmp(header->magic, CONTAINER_MAGIC, sizeof(header->magic)) != 0)
		return message_set(INDEX_E_CORRUPT, "not a dcmem container (wrong magic at byte 0)");
	if (header->version != CONTAINER_VERSION)
		return message_set(INDEX_E_UNSUPPORTED,
				   "container version %u, this build reads %u: update dcmem",
				   header->version, CONTAINER_VERSION);
	if (hash_64(header, offsetof(struct container_header, header_hash)) != header->header_hash)
		return message_set(INDEX_E_CORRUPT, "header damaged (hash at byte 4088)");
	if (header->incompat)
		return message_set(INDEX_E_UNSUPPORTED,
				   "container needs features 0x%llx: update dcmem",
				   (unsigned long long)header->incompat);
	if (header->header_bytes != sizeof(*header) || header->file_bytes != file_bytes)
		return message_set(INDEX_E_CORRUPT,
				   "file has %llu bytes, its header says %llu: truncated or grown",
				   (unsigned long long)file_bytes,
				   (unsigned long long)header->file_bytes);
	if (header->index_offset % CONTAINER_ALIGN || header->index_offset < sizeof(*header) ||
	    header->index_bytes > INDEX_MAX_BYTES ||
	    !range_fits(header->index_offset, header->index_bytes, file_bytes))
		return message_set(INDEX_E_CORRUPT, "index outside the file (byte %llu)",
				   (unsigned long long)header->index_offset);
	return 0;
}

/* Segments and blobs lie before the index. */
static int check_extents(const struct container *container)
{
	uint64_t end = container->header.index_offset;

	for (uint64_t i = 0; i < container->index.n_segments; i++) {
		const struct container_segment *segment;
		int r = index_segment(&container->index, i, &segment);

		if (r)
			return r;
		if (!range_fits(segment->offset, segment->n_bytes, end))
			return message_set(INDEX_E_CORRUPT, "segment %llu outside the file",
					   (unsigned long long)i);
	}
	for (uint64_t i = 0; i < container->index.n_files; i++) {
		const struct container_file *file;
		int r = index_file(&container->index, i, &file);

		if (r)
			return r;
		if (!range_fits(file->blob_offset, file->blob_bytes, end))
			return message_set(INDEX_E_CORRUPT, "blob %llu outside the file",
					   (unsigned long long)i);
	}
	return 0;
}

static int read_index(struct container *container)
{
	const struct container_header *header = &container->header;
	const struct container_index *head;
	int r;

	container->index_bytes = memory_alloc(header->index_bytes);
	if (!container->index_bytes)
		return message_set(-ENOMEM, "no memory for an index of %llu bytes",
				   (unsigned long long)header->index_bytes);
	r = read_at(container->fd, container->index_bytes, header->index_bytes,
		    header->index_offset, "index");
	if (r)
		return r;
	if (hash_64(container->index_bytes, header->index_bytes) != header->index_hash)
		return message_set(INDEX_E_CORRUPT, "index damaged (at byte %llu)",
				   (unsigned long long)header->index_offset);
	r = index_init(&container->index, container->index_bytes, header->index_bytes);
	if (!r)
		r = index_check(&container->index);
	if (r)
		return r;
	head = index_head(&container->index);
	if (memcmp(head->fingerprint, header->fingerprint, 16) != 0 ||
	    memcmp(head->source_hash, header->source_hash, 16) != 0)
		return message_set(INDEX_E_CORRUPT, "index of another container");
	return check_extents(container);
}

int container_open_fd(struct container *ret_container, int fd, const char *name)
{
	struct container container = {.fd = fd};
	struct stat st;
	int r;

	if (fstat(fd, &st) < 0)
		return message_set(-errno, "%s: %s", name, strerror(errno));
	if (!S_ISREG(st.st_mode))
		return message_set(-EINVAL, "%s: not a regular file", name);
	if ((uint64_t)st.st_size < sizeof(container.header))
		return message_set(INDEX_E_CORRUPT, "%s: not a dcmem container (%llu bytes)", name,
				   (unsigned long long)st.st_size);
	r = read_at(fd, &container.header, sizeof(container.header), 0, "header");
	if (!r)
		r = check_header(&container.header, (uint64_t)st.st_size);
	if (!r)
		r = read_index(&container);
	if (r) {
		memory_free(container.index_bytes);
		return message_prefix(r, "%s", name);
	}
	*ret_container = container;
	return 0;
}

int container_open(struct container *ret_container, const char *path)
{
	/* O_NONBLOCK: opening a FIFO must not wait; it is refused later. */
	_cleanup_(cleanup_fd) int fd = open(path, O_RDONLY | O_CLOEXEC | O_NONBLOCK | O_NOCTTY);
	int r;

	if (fd < 0)
		return message_set(-errno, "%s: %s", path, strerror(errno));
	r = container_open_fd(ret_container, fd, path);
	if (!r)
		fd = -1;
	return r;
}

void container_close(struct container *container)
{
	container->fd = close_fd(container->fd);
	container->index_bytes = memory_free(container->index_bytes);
}

void container_share_index(struct container *container, const struct index *index)
{
	container->index_bytes = memory_free(container->index_bytes);
	container->index = *index;
}

int container_read_blob(const struct container *container, const struct container_file *file,
			void **ret_data)
{
	_cleanup_(cleanup_memory) void *data = NULL;
	const char *name = "?";
	int r = index_file_name(&container->index, file, &name);

	if (r)
		return r;
	data = memory_alloc(file->blob_bytes + 1);
	if (!data)
		return message_set(-ENOMEM, "no memory for file '%s' (%llu bytes)", name,
				   (unsigned long long)file->blob_bytes);
	r = read_at(container->fd, data, file->blob_bytes, file->blob_offset, "blob");
	if (r)
		return message_prefix(r, "file '%s'", name);
	if (hash_64(data, file->blob_bytes) != file->blob_hash)
		return message_set(INDEX_E_CORRUPT, "file '%s' damaged (at byte %llu)", name,
				   (unsigned long long)file->blob_offset);
	((char *)data)[file->blob_bytes] = '\0';
	*ret_data = TAKE(data);
	return 0;
}

int container_read_segment(const struct container *container, uint32_t segment, uint64_t offset,
			   void *data, uint64_t n_bytes)
{
	const struct container_segment *record;
	int r = index_segment(&container->index, segment, &record);

	if (r)
		return r;
	if (!range_fits(offset, n_bytes, record->n_bytes))
		return message_set(-EINVAL, "segment %u has no bytes %llu to %llu", segment,
				   (unsigned long long)offset, (unsigned long long)n_bytes);
	return read_at(container->fd, data, n_bytes, record->offset + offset, "segment");
}

int container_decode_page(struct codec_context *codec, const struct container_page *page,
			  const void *stored, void *dst, uint64_t dst_bytes)
{
	int r;

	if (hash_64(stored, page->stored_bytes) != page->stored_hash)
		return message_set(INDEX_E_CORRUPT, "stored page damaged (at %llu of its segment)",
				   (unsigned long long)page->offset);
	r = codec_decode(codec, page->codec, stored, page->stored_bytes, dst, dst_bytes);
	if (r < 0)
		return r;
	if (r == CODEC_E_UNKNOWN)
		return message_set(INDEX_E_UNSUPPORTED, "codec %u is unknown", page->codec);
	if (r || hash_64(dst, dst_bytes) != page->decoded_hash)
		return message_set(INDEX_E_CORRUPT, "page does not decode to its bytes (at %llu)",
				   (unsigned long long)page->offset);
	return 0;
}
