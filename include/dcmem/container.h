/* SPDX-License-Identifier: Apache-2.0 */
/*
 * container.h - the file NAME.dcmem, version 1 (docs/container.md is the specification).
 *
 *   0       struct container_header (4 KiB, one page)
 *   4096    segments: each 4 KiB-aligned, holding the stored pages of whole tensors
 *   ...     blobs: sidecar files, safetensors headers
 *   ...     index: tables searched in place; the daemon shares these very bytes as its catalog
 *
 * Little-endian. Every offset inside the index is relative to its first byte. Reserved bytes are
 * zero, unknown incompatible feature bits are refused. Nothing here is a pointer.
 */
#ifndef DCMEM_CONTAINER_H
#define DCMEM_CONTAINER_H

#include <stddef.h>
#include <stdint.h>

#define CONTAINER_MAGIC "DCMEM\r\n\x1a" /* 8 bytes; CR LF catches text-mode transfers */
#define CONTAINER_VERSION 1
#define CONTAINER_MAX_DIMS 8
#define CONTAINER_MAX_SEGMENTS 250 /* one SCM_RIGHTS message carries 253 descriptors */
#define CONTAINER_MAX_NAME 65535   /* bytes of a tensor or file name */
#define CONTAINER_MAX_PAGE_BYTES (1U << 20)
#define CONTAINER_ALIGN 4096
#define CONTAINER_SMALL_ALIGN 64 /* of tensors under CONTAINER_ALIGN bytes */

struct container_header {
	uint8_t magic[8];
	uint32_t version;
	uint32_t header_bytes;	/* 4096 */
	uint64_t incompat;	/* feature bits a reader must know */
	uint64_t compat;	/* feature bits a reader may ignore: CONTAINER_COMPAT_... */
	uint64_t file_bytes;	/* of the whole file */
	uint64_t index_offset;	/* in the file, CONTAINER_ALIGN-aligned */
	uint64_t index_bytes;
	uint64_t index_hash;	/* XXH3-64 of the index */
	uint8_t source_hash[16]; /* XXH3-128 over the source files, see docs/container.md */
	uint8_t fingerprint[16]; /* XXH3-128 of source_hash, options and version */
	uint8_t reserved[4000 - 8];
	uint64_t header_hash;	/* XXH3-64 of the bytes before it */
};

#define CONTAINER_COMPAT_HINTS (1ULL << 0) /* the index has hints */

/* One table of the index. */
struct container_table {
	uint64_t offset; /* from the start of the index, 64-byte aligned */
	uint64_t count;	 /* records; bytes for strings and extra */
};

enum {
	CONTAINER_TABLE_STRINGS,    /* names, NUL-terminated, no two overlap */
	CONTAINER_TABLE_TENSORS,    /* struct container_tensor */
	CONTAINER_TABLE_NAMES,	    /* uint32_t: open-addressed hash table of tensor ids: a power
				       of two of slots, more than tensors (at least twice as many
				       written), UINT32_MAX empty, linear probing from
				       XXH3-64(name, name_seed) modulo slots; 1 slot if no tensors */
	CONTAINER_TABLE_FORMS,	    /* struct container_form */
	CONTAINER_TABLE_PAGES,	    /* struct container_page */
	CONTAINER_TABLE_COMPANIONS, /* struct container_companion, sorted by tensor */
	CONTAINER_TABLE_FILES,	    /* struct container_file */
	CONTAINER_TABLE_SEGMENTS,   /* struct container_segment */
	CONTAINER_TABLE_OPTIONS,    /* the pack options as one line of text */
	CONTAINER_TABLE_HINTS,	    /* struct container_hint, sorted by tensor; offset and count 0 if
				       there are none */
	CONTAINER_N_TABLES = 16,    /* the rest is for later: written as 0, ignored when read */
};

#define CONTAINER_INDEX_MAGIC 0x5844494d454d4344ULL /* "DCMEMIDX" */

struct container_index {
	uint64_t magic;
	uint32_t version;
	uint32_t n_tables; /* CONTAINER_N_TABLES */
	uint64_t index_bytes;
	uint64_t name_seed; /* of the hash table */
	uint8_t fingerprint[16];
	uint8_t source_hash[16];
	struct container_table tables[CONTAINER_N_TABLES];
};

#define CONTAINER_TENSOR_QUANTIZED (1U << 0)
#define CONTAINER_TENSOR_SHARED (1U << 1) /* forms belong to an earlier tensor */

struct container_tensor {
	uint64_t name_offset; /* in the strings */
	uint32_t name_bytes;  /* without the NUL */
	uint16_t dtype;	      /* enum dcmem_dtype */
	uint16_t n_dims;
	uint64_t dims[CONTAINER_MAX_DIMS]; /* unused ones 0 */
	uint64_t n_bytes;		   /* decoded; dims times element size, checked */
	uint32_t page_bytes;		   /* decoded bytes of every page but the last */
	uint32_t n_forms;
	uint64_t first_form;
	uint32_t file;	      /* the source file it came from */
	uint32_t flags;	      /* CONTAINER_TENSOR_... */
	uint64_t file_offset; /* of its bytes in that file's data section */
	uint64_t first_companion;
	uint32_t n_companions;
	uint32_t reserved;
};

/* One stored representation of pages [first_page, first_page + n_pages) of a tensor. */
struct container_form {
	uint64_t first_page;  /* of the tensor */
	uint64_t n_pages;
	uint64_t page_record; /* first record in the page table */
	uint64_t offset;      /* of the form in its segment */
	uint64_t stored_bytes; /* extent in the segment */
	uint32_t segment;
	uint16_t flags;	      /* CONTAINER_FORM_RAW */
	uint16_t rank;	      /* readers without a reason use the lowest rank */
	uint64_t decode_ns;   /* hint: one core, 0 unknown */
	uint64_t reserved;
};
#define CONTAINER_FORM_RAW (1U << 0) /* all pages raw and contiguous: may be handed out in place */

struct container_page {
	uint64_t offset;      /* in the segment */
	uint32_t stored_bytes;
	uint8_t codec;	      /* codec.h; 0 is raw */
	uint8_t reserved[3];
	uint64_t stored_hash; /* XXH3-64 of the stored bytes */
	uint64_t decoded_hash; /* XXH3-64 of the decoded bytes */
};

struct container_companion {
	uint64_t tensor;    /* the tensor that is accompanied */
	uint64_t companion; /* the one that accompanies it */
	uint16_t relation;  /* enum dcmem_relation */
	uint16_t scheme;    /* 1 affine; unknown ones are refused */
	int32_t axis;	    /* -1 per tensor, 0 rows, 1 columns */
	uint32_t group_size;
	uint32_t reserved;
};

enum {
	CONTAINER_FILE_VERBATIM = 1,	/* the blob is the file */
	CONTAINER_FILE_SAFETENSORS = 2, /* the blob is its head; the rest are tensors in order */
};

struct container_file {
	uint64_t name_offset;
	uint32_t name_bytes;
	uint32_t kind;
	uint64_t blob_offset; /* in the container file */
	uint64_t blob_bytes;
	uint64_t blob_hash;   /* XXH3-64 of the blob */
	uint64_t file_bytes;  /* of the source file */
	uint8_t file_hash[16]; /* XXH3-128 of the source file */
};

struct container_segment {
	uint64_t offset; /* in the container file, CONTAINER_ALIGN-aligned */
	uint64_t n_bytes; /* multiple of CONTAINER_ALIGN */
};

/*
 * One way to store a tensor, as measured when it was packed: of a tensor's hints each next one is
 * smaller and no faster to decode. Sizes and times are estimates from sample pages, on one core of
 * the machine that packed, with pages in its caches and without hashes.
 */
struct container_hint {
	uint64_t tensor;
	uint64_t stored_bytes; /* of all its pages, without their records */
	uint32_t decode_ps;    /* picoseconds a decoded byte */
	uint32_t encode_ps;
	uint8_t codec;	       /* codec.h; a reader passes over those that it does not know */
	uint8_t effort;	       /* of codec_encode() */
	uint8_t path;	       /* what that machine decoded with: 0 portable C, 1 AVX2, 2 AVX-512 */
	uint8_t reserved[5];
};
#define CONTAINER_MAX_HINTS 16 /* of a tensor */

_Static_assert(sizeof(struct container_header) == 4096, "header is one page");
_Static_assert(offsetof(struct container_header, header_hash) == 4088, "hash ends the page");
_Static_assert(sizeof(struct container_index) == 320, "ABI");
_Static_assert(sizeof(struct container_tensor) == 136, "ABI");
_Static_assert(sizeof(struct container_form) == 64, "ABI");
_Static_assert(sizeof(struct container_page) == 32, "ABI");
_Static_assert(sizeof(struct container_companion) == 32, "ABI");
_Static_assert(sizeof(struct container_file) == 64, "ABI");
_Static_assert(sizeof(struct container_hint) == 32, "ABI");
_Static_assert(sizeof(struct container_segment) == 16, "ABI");

#endif
