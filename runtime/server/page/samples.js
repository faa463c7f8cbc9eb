// The sample pictures of the repository, and what they show.

export const SAMPLES = [
    { file: 'scene_1.png', alt: 'Drawings of a unicorn and a crab on purple' },
    { file: 'scene_2.png', alt: 'Drawing of a strawberry on blue' },
    { file: 'scene_3.png', alt: 'Drawings of six trains on green' },
    { file: 'scene_4.png', alt: 'The word KIWI on orange' },
    { file: 'scene_5.png', alt: 'Drawings of a gift, a duck and a crown on red' },
    { file: 'scene_6.png', alt: 'Drawing of a bee on yellow' },
    { file: 'scene_7.png', alt: 'Drawings of six donuts on pink' },
    { file: 'scene_8.png', alt: 'The number 28 on gray' },
    { file: 'astronaut.jpg', alt: 'Photograph of an astronaut in an orange suit' },
    { file: 'chelsea.jpg', alt: 'Photograph of a cat' },
    { file: 'coffee.jpg', alt: 'Photograph of a cup of coffee' },
];

/** Fetches a sample. */
export async function sample(file) {
    const response = await fetch(new URL(`samples/${file}`, import.meta.url));
    if (!response.ok) throw new Error(`The sample ${file} is not there: HTTP status ${response.status}.`);
    return response.blob();
}
